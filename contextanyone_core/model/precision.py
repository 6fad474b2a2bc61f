"""Mixed precision: layers in float32 under autocast (Wan 2.1: embeddings of time and patches, norms, head)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, autocast, nn


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is enabled for this device type; False if the device does not support it."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm of x; under autocast in float32, also with weights in bf16, as FSDP2 gathers them."""
    if under_autocast(x.device):  # a norm of mixed dtypes has no fused kernel
        x, weights = x.float(), dict(norm.named_parameters())
        if any(weight.dtype != torch.float32 for weight in weights.values()):
            low: Tensor = torch.func.functional_call(norm, {name: w.float() for name, w in weights.items()}, x)
            return low
    found: Tensor = norm(x)
    return found


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context with autocast disabled for this device type."""
    return autocast(device.type, enabled=False) if under_autocast(device) else nullcontext()
