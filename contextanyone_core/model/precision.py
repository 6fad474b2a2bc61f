"""Mixed precision: layers in float32 under autocast (Wan 2.1: embeddings of time and patches, norms, head)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import autocast


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is enabled for this device type; False if the device does not support it."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context with autocast disabled for this device type."""
    return autocast(device.type, enabled=False) if under_autocast(device) else nullcontext()
