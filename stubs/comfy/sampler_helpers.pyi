from collections.abc import Sequence
from typing import Any

from .model_patcher import ModelPatcher

def cond_has_hooks(cond: Sequence[Sequence[Any]]) -> bool: ...
def estimate_memory(model: ModelPatcher, noise_shape: Sequence[int], conds: dict[str, Any]) -> tuple[float, float]: ...
