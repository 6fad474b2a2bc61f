from torch import Tensor

from .io import ComfyNode

class PreviewImage:
    def __init__(self, image: Tensor, *, cls: type[ComfyNode] | None = ...) -> None: ...
