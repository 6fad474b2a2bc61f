"""What a device has free."""

from __future__ import annotations

import torch


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
