from torch import Tensor

from .io import ComfyNode, FolderType

class SavedResult(dict[str, str]): ...

class ImageSaveHelper:
    @staticmethod
    def save_animated_webp(
        images: Tensor,
        filename_prefix: str,
        folder_type: FolderType,
        cls: type[ComfyNode] | None,
        fps: float,
        lossless: bool,
        quality: int,
        method: int,
    ) -> SavedResult: ...

class PreviewImage:
    def __init__(self, image: Tensor, *, cls: type[ComfyNode] | None = ...) -> None: ...
