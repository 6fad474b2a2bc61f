"""Availability of devices, and their free memory."""

from __future__ import annotations

import torch

from ..errors import InputError

BUILT_WITHOUT = (
    "this torch is built without CUDA and sees no card; https://pytorch.org/get-started/locally/ has the line that "
    "installs one for yours"
)


def check_device(device: torch.device | str) -> torch.device:
    """The device, after checking that it can be used.

    Raises:
        InputError: this build of torch or this machine does not have the device.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        if str(device).startswith("cuda") and not sees_cards():
            raise InputError(f"The device {str(device)!r} cannot be used here: {BUILT_WITHOUT}. Or use cpu.") from error
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise InputError(f"The device {str(device)!r} cannot be used here ({reason}). Use cpu.") from error
    return found


def sees_cards() -> bool:
    """Whether this build of torch is one for graphics cards, by CUDA or ROCm; pip's own for Windows is not."""
    return bool(torch.version.cuda or torch.version.hip)


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
