"""Floating-point operations of the transformer, computed from its sizes: the unit of buckets and cost plans."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contextanyone_core.config import ContextAnyoneConfig


def forward_flops(config: ContextAnyoneConfig, video: int, references: Sequence[int] = (), clip_tokens: int = 0) -> int:
    """FLOPs of one forward pass of one sample; a multiply-add is two.

    Exactly what torch's FlopCounterMode counts: matrix products and convolutions, nothing elementwise. A network with
    condition channels is given them, as in training.

    Args:
        video: tokens of the video.
        references: tokens of each reference; none is the pass without reference.
        clip_tokens: CLIP tokens of all references together.
    """
    passes = _outside_blocks(config, video, config.patch_channels) + config.num_layers * _video_block(
        config, video, references, clip_tokens
    )
    if references:
        passes += _outside_blocks(config, sum(references), config.in_dim)
        passes += config.num_layers * _reference_block(config, references, clip_tokens)
        if clip_tokens and config.image_dim is not None:
            passes += 2 * clip_tokens * config.image_dim * (config.image_dim + config.dim)
    return passes


def backward_flops(
    config: ContextAnyoneConfig, video: int, references: Sequence[int] = (), clip_tokens: int = 0
) -> int:
    """FLOPs of the backward pass of everything, arguments as in `forward_flops`; also exactly torch's count.

    Twice the forward pass, but for the gradients of what comes from outside: latents, text, waves of the timestep.
    Attention counts as its four products; a fused kernel computes its scores again, half as much as its forward pass.
    """
    patch, streams = math.prod(config.patch_size), 2 if references else 1
    inputs = patch * (video * config.patch_channels + sum(references) * config.in_dim)
    inputs += streams * (config.text_len * config.text_dim + config.freq_dim)
    return 2 * forward_flops(config, video, references, clip_tokens) - 2 * config.dim * inputs


def _outside_blocks(config: ContextAnyoneConfig, tokens: int, channels: int) -> int:
    """Embeddings of patches of so many channels, text and time, and the head, of one stream."""
    dim, patch = config.dim, math.prod(config.patch_size)
    ends = tokens * dim * patch * (channels + config.out_dim)
    text = config.text_len * dim * (config.text_dim + dim)
    return 2 * (ends + text + dim * (config.freq_dim + dim + 6 * dim))


def _shared(config: ContextAnyoneConfig, tokens: int) -> int:
    """What a block does to either stream: projections, text cross-attention and feed-forward."""
    dim, text = config.dim, config.text_len
    projections = 12 * tokens * dim**2 + 4 * text * dim**2
    return projections + 4 * tokens * text * dim + 4 * tokens * dim * config.ffn_dim


def _video_block(config: ContextAnyoneConfig, video: int, references: Sequence[int], clip_tokens: int) -> int:
    dim, read = config.dim, sum(references)
    attention = 4 * video * (video + read) * dim + 4 * video * clip_tokens * dim
    emphasize = 4 * video * dim**2 + 4 * video * read * dim if references and config.emphasize else 0
    return _shared(config, video) + attention + emphasize


def _reference_block(config: ContextAnyoneConfig, references: Sequence[int], clip_tokens: int) -> int:
    dim, tokens = config.dim, sum(references)
    attention = sum(4 * length**2 * dim for length in references) + 4 * clip_tokens * dim**2
    emphasize = 4 * tokens * dim**2 if config.emphasize else 0
    return _shared(config, tokens) + attention + emphasize
