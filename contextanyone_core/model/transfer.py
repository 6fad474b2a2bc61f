"""Copies from the host to a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, copied without waiting for what the device has to do before.

    A card copies from pinned memory alone without such a wait; torch keeps that memory until it is copied. A host that
    compiles the whole network leaves it to the compiler.
    """
    pinned = device.type == "cuda" and not torch.compiler.is_compiling()
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
