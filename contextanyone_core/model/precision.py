"""Mixed precision: what stays in float32 under autocast (Wan 2.1 keeps embeddings of time and patches, norms, head)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import autocast


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is on for this kind of device; False where the device has none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast on this kind of device."""
    return autocast(device.type, enabled=False) if under_autocast(device) else nullcontext()
