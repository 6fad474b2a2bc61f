"""Whether a device is there, and what it has free."""

from __future__ import annotations

import torch

from ..errors import InputError


def check_device(device: torch.device | str) -> torch.device:
    """The device, if it can be used.

    Raises:
        InputError: this torch or this machine does not have it.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The device {str(device)!r} cannot be used here ({reason}). Use cpu.") from error
    return found


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a card; None for a device that is not asked (a CPU, or one that shares its memory)."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_cached(device: torch.device) -> None:
    """Give back what torch keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
