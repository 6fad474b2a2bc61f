from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .model_patcher import ModelPatcher

class ClipVisionModel:
    image_size: int
    image_mean: list[float]
    image_std: list[float]
    load_device: torch.device
    patcher: ModelPatcher
    model: Callable[..., tuple[Tensor, Tensor]]
    def __init__(self, json_config: dict[str, Any]) -> None: ...
    def load_sd(self, sd: dict[str, Tensor]) -> tuple[list[str], list[str]]: ...
