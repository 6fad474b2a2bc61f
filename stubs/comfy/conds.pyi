from typing import Any

from torch import Tensor

class CONDRegular:
    cond: Any
    def __init__(self, cond: Any) -> None: ...
    def size(self) -> list[int]: ...

class CONDConstant(CONDRegular): ...

class CONDList(CONDRegular):
    cond: list[Tensor]
    def __init__(self, cond: list[Tensor]) -> None: ...
