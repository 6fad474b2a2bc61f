"""Description of the machine that a measurement ran on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from contextanyone_core.cli.parsing import package_version
from contextanyone_core.runtime.processor import device_name

GIB = 1 << 30


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name and memory of the device."""
    found: dict[str, Any] = {"device": str(device), "name": device_name(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory_gib": round(properties.total_memory / GIB, 1)}
        found |= {"cuda": torch.version.cuda, "sdpa": _sdpa_kernels()}
    else:
        found["threads"] = torch.get_num_threads()
    return found


def describe_versions() -> dict[str, str]:
    """Versions of all software that affects the result."""
    packages = ("contextanyone", "torch", "diffusers", "transformers", "triton")
    return {"python": platform.python_version()} | {name: package_version(name) for name in packages}


def _sdpa_kernels() -> list[str]:
    """SDPA kernels that torch may select."""
    backends: Any = torch.backends.cuda
    enabled = {
        "cudnn": backends.cudnn_sdp_enabled(),
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
    }
    return [name for name, on in enabled.items() if on]
