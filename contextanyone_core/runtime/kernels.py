"""Attention kernels by name, as `attention.AttentionFunction`: torch's SDPA, FlashAttention, SageAttention.

The two packages are registered as custom operators, which torch.compile treats as opaque.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, MissingDependencyError
from ..model.attention import AttentionFunction, torch_attention

# name -> module, its function, and the command that installs it
_PACKAGES = {
    "flash": ("flash_attn", "flash_attn_func", "pip install flash-attn --no-build-isolation"),
    "sage": ("sageattention", "sageattn", "pip install sageattention"),
}


def make_attention(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, AttentionFunction]:
    """The attention kernel for a name, and its name with `auto` resolved.

    Args:
        name: `sdpa` (torch selects the kernel), `flash`, `sage` (int8 products, so the output changes slightly), or
            `auto`: flash if it is installed and supports device and dtype, else sdpa.
        device, dtype: of the transformer.

    Raises:
        MissingDependencyError: the package is not installed, or not built for this machine; the pip command is named.
        InputError: the name is unknown, or the kernel does not support this device or dtype.
    """
    if name == "auto":
        try:
            return make_attention("flash", device, dtype)
        except (InputError, MissingDependencyError):
            name = "sdpa"
    if name == "sdpa":
        return name, torch_attention
    if name not in _PACKAGES:
        raise InputError(f"There is no attention {name!r}; known are auto, sdpa, {', '.join(_PACKAGES)}.")
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        raise InputError(
            f"Attention {name} works on cuda in bfloat16 or float16; given are {device.type} and "
            f"{str(dtype).removeprefix('torch.')}. Use sdpa, or another --device and --dtype."
        )
    _function(name)
    return name, {"flash": flash_attention, "sage": sage_attention}[name]


def flash_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention by the package flash-attn; shapes as in `AttentionFunction`."""
    out: Tensor = _flash(*(_split(x, heads) for x in (q, k, v)))
    return out.flatten(-2)


def sage_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention by the package sageattention; shapes as in `AttentionFunction`."""
    out: Tensor = _sage(*(_split(x, heads) for x in (q, k, v)))
    return out.flatten(-2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1)


@torch.library.custom_op("contextanyone::flash_attention", mutates_args=())
def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = _function("flash")(q, k, v)
    return out.contiguous()


@torch.library.custom_op("contextanyone::sage_attention", mutates_args=())
def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = _function("sage")(q, k, v, tensor_layout="NHD")
    return out.contiguous()


@_flash.register_fake
@_sage.register_fake
def _shape(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def _function(name: str) -> Callable[..., Tensor]:
    module, function, command = _PACKAGES[name]
    try:
        found: Callable[..., Tensor] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Attention {name} needs the package {error.name or module}, which is not installed. Run: {command}"
        ) from error
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            f"The package {module} does not work with this torch ({str(error).splitlines()[0]}). Run: {command}"
        ) from error
    return found
