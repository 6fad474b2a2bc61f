"""Offloading by diffusers' hooks: weights in host memory, copied to the device block by block, or stored in fp8."""

from __future__ import annotations

from typing import Any

import torch

from ..late_import import host_class
from ..model.attention import AttentionFunction
from ..model.blocks import Mode
from ..model.references import ReferenceCache, ReferenceInputs
from ..model.transformer import ContextAnyoneTransformer

FP8 = torch.float8_e4m3fn


def store_in_fp8(transformer: ContextAnyoneTransformer, dtype: torch.dtype) -> None:
    """Store the blocks' matrices in fp8 and compute with each in `dtype`; norms, embeddings and head stay."""
    cast_layers = host_class("diffusers.hooks.layerwise_casting", "apply_layerwise_casting")
    cast_layers(transformer.blocks, storage_dtype=FP8, compute_dtype=dtype, skip_modules_pattern=("norm",))


class StreamedTransformer(ContextAnyoneTransformer):
    """A transformer that computes on a device while its blocks, and the reference cache, are on the CPU.

    At most two blocks are on the device: one computes while the next is prefetched. The hooks are on `forward`, of the
    whole and of each block, so both streams go through it.

    Args:
        transformer: its layers are taken over, with hooks.
        device: device of the computation.
    """

    def __init__(self, transformer: ContextAnyoneTransformer, device: torch.device) -> None:
        super().__init__(transformer.config, attention=transformer.attention, device="meta")
        for name, layers in transformer.named_children():
            setattr(self, name, layers)
        _stream(self, device, exclude_kwargs=["cache"])

    def forward(self, *inputs: Any, mode: Mode = "video", **options: Any) -> Any:
        """Run one stream; arguments and result of the transformer's `forward` or `encode_references`."""
        run = super().encode_references if mode == "reference" else super().forward
        return run(*inputs, **options)

    def encode_references(
        self, references: ReferenceInputs, *, attention: AttentionFunction | None = None
    ) -> ReferenceCache:
        """As the transformer's; keys and values are stored on the CPU, and hooks copy each block's to the device."""
        cache: ReferenceCache = self(references, mode="reference", attention=attention)
        return ReferenceCache(ReferenceCache(cache.blocks, []).to("cpu").blocks, cache.outputs)


def stream_text_encoder(model: Any, device: torch.device) -> None:
    """Let transformers' `UMT5EncoderModel` compute on `device` while its blocks are on the CPU."""
    _stream(model.encoder, device)


def _stream(module: Any, device: torch.device, **options: Any) -> None:
    host_class("accelerate.utils", "send_to_device")  # diffusers' hook calls it without checking that it exists
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
