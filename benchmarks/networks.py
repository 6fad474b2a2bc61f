"""Networks with random weights, created on the device in their compute dtype, without files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.compile import compile_blocks
from contextanyone_core.runtime.kernels import make_attention

VACE_CONDITION = 96
"""Channels of VACE's context: 16 inactive, 16 reactive, 64 of the mask."""
_SPREAD = 0.02
_HOST_NAMES = {"sdpa": "native", "flash": "flash", "sage": "sage"}
_Module = TypeVar("_Module", bound=nn.Module)


def plain(config: ContextAnyoneConfig) -> ContextAnyoneConfig:
    """The same config for plain Wan 2.1 T2V: no CLIP branch, no Emphasize-Attention."""
    return replace(config, emphasize=False, image_dim=None)


def random_transformer(
    config: ContextAnyoneConfig, device: torch.device, dtype: torch.dtype
) -> ContextAnyoneTransformer:
    """Our transformer; zero-initialised weights are random too, because zeros can run faster than data."""
    return _filled(ContextAnyoneTransformer(config, device=device, dtype=dtype))


def diffusers_wan(config: ContextAnyoneConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' `WanTransformer3DModel` of the same sizes, without references."""
    from diffusers import WanTransformer3DModel

    return _host(WanTransformer3DModel, _sizes(config), device, dtype)


def diffusers_vace(config: ContextAnyoneConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' `WanVACETransformer3DModel` of the same sizes, with a VACE block per two blocks, as in 1.3B."""
    from diffusers import WanVACETransformer3DModel

    layers = {"vace_layers": list(range(0, config.num_layers, 2)), "vace_in_channels": VACE_CONDITION}
    return _host(WanVACETransformer3DModel, _sizes(config) | layers, device, dtype)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Context in which modules are created on this device and in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _sizes(config: ContextAnyoneConfig) -> dict[str, Any]:
    return {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "patch_size": config.patch_size,
        "eps": config.eps,
    }


def _host(host: Any, sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers network as after its own loading: the modules that it keeps in float32 are float32."""
    with made_on(device, dtype):
        model = host(**sizes)
    with torch.device(device):  # tables, which the default dtype must not change
        model.rope = type(model.rope)(sizes["attention_head_dim"], sizes["patch_size"], model.config.rope_max_seq_len)
    full = set(host._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        if full & set(name.split(".")):
            parameter.data = parameter.data.float()
    return _filled(model)


def _filled(module: _Module) -> _Module:
    for parameter in module.requires_grad_(False).eval().parameters():
        if not parameter.is_meta and not bool(parameter.any()):
            parameter.normal_(std=_SPREAD)
    return module


def prepare(networks: Iterable[nn.Module], attention: str, backend: str | None) -> None:
    """Set the same attention kernel in our networks and in diffusers', and compile their repeated blocks alike.

    Args:
        attention: a name of `contextanyone_core.runtime.options.ATTENTIONS`.
        backend: backend of torch.compile; None compiles nothing.

    Raises:
        MissingDependencyError: the kernel's package is not installed.
        InputError: the kernel does not support this device or dtype.
    """
    for network in networks:
        weight = network.get_parameter("patch_embedding.weight")
        name, kernel = make_attention(attention, weight.device, weight.dtype)
        if isinstance(network, ContextAnyoneTransformer):
            network.attention = kernel
        else:
            cast("Any", network).set_attention_backend(_HOST_NAMES[name])
        if backend is None:
            continue
        if isinstance(network, ContextAnyoneTransformer):
            compile_blocks(network, backend=backend)
        else:
            cast("Any", network).compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
