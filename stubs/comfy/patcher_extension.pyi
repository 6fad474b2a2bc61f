from collections.abc import Callable
from typing import Any

from torch import Tensor

class WrappersMP:
    DIFFUSION_MODEL: str
    OUTER_SAMPLE: str

class WrapperExecutor:
    class_obj: Any
    @classmethod
    def new_class_executor(
        cls, original: Callable[..., Any], class_obj: object, wrappers: list[Callable[..., Any]]
    ) -> WrapperExecutor: ...
    def execute(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

def get_all_wrappers(wrapper_type: str, transformer_options: dict[str, Any]) -> list[Callable[..., Any]]: ...
