from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher

def prepare_callback(model: ModelPatcher, steps: int) -> Callable[..., Any]: ...
