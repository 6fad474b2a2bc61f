from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .model_patcher import ModelPatcher

SAMPLER_NAMES: list[str]

class KSAMPLER: ...

class CFGGuider:
    model_patcher: ModelPatcher
    model_options: dict[str, Any]
    inner_model: Any
    conds: dict[str, Any]
    def __init__(self, model_patcher: ModelPatcher) -> None: ...
    def set_cfg(self, cfg: float) -> None: ...
    def inner_set_conds(self, conds: dict[str, Any]) -> None: ...
    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = ..., seed: Any = ...
    ) -> Tensor: ...
    def outer_sample(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: KSAMPLER,
        sigmas: Tensor,
        *,
        callback: Callable[..., Any] | None = ...,
        disable_pbar: bool = ...,
        seed: int | None = ...,
    ) -> Tensor: ...

def calc_cond_batch(
    model: Any, conds: Sequence[Any], x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]: ...
def sampler_object(name: str) -> KSAMPLER: ...
