"""Weights that rest in the machine's memory and come to the card block by block, or rest in fp8 (diffusers' hooks)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from ..late_import import host_class
from ..model.transformer import ContextAnyoneTransformer, ReferenceCache

FP8 = torch.float8_e4m3fn


def store_in_fp8(transformer: ContextAnyoneTransformer, dtype: torch.dtype) -> None:
    """Keep the blocks' matrices in fp8 and compute with each in `dtype`; norms, embeddings and head stay."""
    cast_layers = host_class("diffusers.hooks.layerwise_casting", "apply_layerwise_casting")
    cast_layers(transformer.blocks, storage_dtype=FP8, compute_dtype=dtype, skip_modules_pattern=("norm",))


def stream_transformer(transformer: ContextAnyoneTransformer, device: torch.device) -> None:
    """Let a transformer compute on `device` while its blocks, and what they keep of references, rest on the CPU.

    At any time two blocks are on the card: one works, the next is fetched meanwhile.
    """
    for block in transformer.blocks:
        _one_entrance(block, "encode_reference")
    _one_entrance(transformer, "encode_references")
    _stream(transformer, device, exclude_kwargs=["cache"])
    whole = cast("Callable[..., ReferenceCache]", transformer.encode_references)

    def encode_references(*args: Any, **kwargs: Any) -> ReferenceCache:
        kept = whole(*args, **kwargs)  # the hooks on the blocks bring each its part
        return ReferenceCache(ReferenceCache(kept.blocks, []).to("cpu").blocks, kept.outputs)

    cast("Any", transformer).encode_references = encode_references


def stream_text_encoder(model: Any, device: torch.device) -> None:
    """Let transformers' `UMT5EncoderModel` compute on `device` while its blocks rest on the CPU."""
    _stream(model.encoder, device)


def _stream(module: Any, device: torch.device, **options: Any) -> None:
    host_class("accelerate.utils", "send_to_device")  # what diffusers' hook calls without asking for it
    apply = host_class("diffusers.hooks.group_offloading", "apply_group_offloading")
    apply(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
        **options,
    )


def _one_entrance(module: Any, other: str) -> None:
    """Let another method of a module run through its `forward`, on which the hooks hang."""
    ways = {"forward": module.forward, other: getattr(module, other)}
    inside: list[str] = []

    def enter(*args: Any, way: str = "forward", **kwargs: Any) -> Any:
        inside.append(way)
        try:
            return ways[way](*args, **kwargs)
        finally:
            inside.pop()

    def call(*args: Any, **kwargs: Any) -> Any:
        return ways[other](*args, **kwargs) if inside else module(*args, way=other, **kwargs)

    module.forward = enter
    setattr(module, other, call)
