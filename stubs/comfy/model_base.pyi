from enum import Enum
from typing import Any

import torch
from torch import Tensor

from .supported_models_base import BASE

class ModelType(Enum):
    FLOW = ...

class BaseModel(torch.nn.Module):
    diffusion_model: torch.nn.Module
    latent_format: Any
    model_sampling: Any
    memory_usage_factor_conds: tuple[str, ...]
    def __init__(
        self,
        model_config: BASE,
        model_type: ModelType = ...,
        device: torch.device | None = ...,
        unet_model: type[torch.nn.Module] = ...,
    ) -> None: ...
    def _apply_model(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
    def extra_conds(self, **kwargs: Any) -> dict[str, Any]: ...
    def process_latent_in(self, latent: Tensor) -> Tensor: ...
    def process_latent_out(self, latent: Tensor) -> Tensor: ...
    def get_dtype_inference(self) -> torch.dtype: ...
    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = ..., assign: bool = ...) -> BaseModel: ...
    def state_dict_for_saving(
        self, unet_state_dict: dict[str, Tensor], *parts: Any, **more: Any
    ) -> dict[str, Tensor]: ...
