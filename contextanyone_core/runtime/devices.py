"""Availability of devices, and their free memory."""

from __future__ import annotations

import torch

from ..errors import InputError


def check_device(device: torch.device | str) -> torch.device:
    """The device, after checking that it can be used.

    Raises:
        InputError: this build of torch or this machine does not have the device.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The device {str(device)!r} cannot be used here ({reason}). Use cpu.") from error
    return found


def free_bytes(device: torch.device) -> int | None:
    """Free bytes of a GPU; None for a CPU or a device that shares the CPU's memory."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_cached(device: torch.device) -> None:
    """Release the memory that torch's allocator caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
