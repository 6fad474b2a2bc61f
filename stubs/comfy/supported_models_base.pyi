from typing import Any

import torch

class ClipTarget:
    def __init__(self, tokenizer: Any, clip: Any) -> None: ...

class BASE:
    unet_config: dict[str, Any]
    unet_extra_config: dict[str, Any]
    sampling_settings: dict[str, float]
    latent_format: Any
    memory_usage_factor: float
    supported_inference_dtypes: list[torch.dtype]
    quant_config: Any
    optimizations: dict[str, bool]
    def __init__(self, unet_config: dict[str, Any]) -> None: ...
    def set_inference_dtype(self, dtype: torch.dtype | None, manual_cast_dtype: torch.dtype | None) -> None: ...
