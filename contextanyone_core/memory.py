"""How much memory a forward pass takes beside the weights, by arithmetic (DESIGN 1; measured in tests/core)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import ContextAnyoneConfig


def cache_bytes(config: ContextAnyoneConfig, reference_tokens: int, image_tokens: int, dtype_size: int) -> int:
    """Bytes of a reference cache: keys and values of every block, for references and CLIP tokens, batch 1.

    At 832 x 480 in bf16 one reference of the 1.3B model takes 548 MiB and its CLIP tokens 45 MiB.
    """
    pairs = 2 if config.emphasize else 1
    per_block = (pairs * reference_tokens + image_tokens) * 2 * config.dim * dtype_size
    return config.num_layers * per_block


def forward_bytes(
    config: ContextAnyoneConfig,
    latents_shape: Sequence[int],
    *,
    reference_tokens: int = 0,
    image_tokens: int = 0,
    dtype_size: int = 2,
) -> int:
    """Peak bytes of one call without gradients, the reference cache included.

    Counted at the widest moment of a block, the feed-forward: its hidden layer before and after the activation, the
    residual stream, its normed form and that in float32; and the keys and values of the references beside the video's.

    Args:
        latents_shape: (B, C, T, h, w).
        reference_tokens: of all references of one sample; the cache is shared by the batch.
        image_tokens: CLIP tokens, likewise.
        dtype_size: bytes of a number in compute.
    """
    tokens = latents_shape[0] * math.prod(latents_shape[2:]) // math.prod(config.patch_size)
    block = tokens * (2 * config.ffn_dim * dtype_size + config.dim * (3 * dtype_size + 8))
    joined = (tokens + latents_shape[0] * reference_tokens) * 2 * config.dim * dtype_size
    text = latents_shape[0] * config.text_len * (config.text_dim + 4 * config.dim) * dtype_size
    return block + joined + text + cache_bytes(config, reference_tokens, image_tokens, dtype_size)
