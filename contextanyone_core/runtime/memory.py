"""Memory estimates of a forward pass and of a whole generation, by arithmetic (checked in tests/core)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import ContextAnyoneConfig
from ..model_specs import MODELS, ModelSpec
from ..shapes import LONG_EDGE, VideoShape
from .options import Video


def cache_bytes(config: ContextAnyoneConfig, reference_tokens: int, image_tokens: int, dtype_size: int) -> int:
    """Bytes of a reference cache: keys and values of every block, for references and CLIP tokens, batch 1.

    At 832 x 480 in bf16, one reference of the 1.3B model takes 548 MiB, and its CLIP tokens take 45 MiB.
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
    """Peak activation bytes of one call without gradients, plus the reference cache.

    The peak is in the feed-forward: its hidden layer before and after the activation, the residual stream, its normed
    form and that in float32; and the keys and values of the references next to the video's.

    Args:
        latents_shape: (B, C, T, h, w).
        reference_tokens: tokens of all references of one sample; the batch shares the cache.
        image_tokens: CLIP tokens, likewise.
        dtype_size: bytes per element of the compute dtype.
    """
    tokens = latents_shape[0] * math.prod(latents_shape[2:]) // math.prod(config.patch_size)
    block = tokens * (2 * config.ffn_dim * dtype_size + config.dim * (3 * dtype_size + 8))
    joined = (tokens + latents_shape[0] * reference_tokens) * 2 * config.dim * dtype_size
    text = latents_shape[0] * config.text_len * (config.text_dim + 4 * config.dim) * dtype_size
    return block + joined + text + cache_bytes(config, reference_tokens, image_tokens, dtype_size)


def one_stream_bytes(
    config: ContextAnyoneConfig, latents_shape: Sequence[int], *, reference_tokens: int, dtype_size: int = 2
) -> int:
    """As `forward_bytes`, of a model whose references are tokens of the video's own stream; nothing is cached."""
    batch, channels, *sides = latents_shape
    longer = math.prod(sides) + reference_tokens * math.prod(config.patch_size)
    return forward_bytes(config, (batch, channels, 1, 1, longer), dtype_size=dtype_size)


MODES = ("high", "balanced", "low")
"""Memory modes of `options.MEMORIES` except `auto`, from the fastest to the smallest."""

MOST_OF_FREE = 0.9
"""Share of a card's free memory that is planned with; the rest is lost between the allocator's blocks."""

CLIP_TOKENS = 257
"""Tokens of a reference by CLIP's ViT-H/14: the class and 16 x 16 patches."""

_TILE = 256  # pixels per side, diffusers' default
_TEXT_WORK = 300 << 20  # three prompts of 512 tokens through umT5-XXL
# Live elements per pixel of a frame at the peak of Wan's VAE (width 96), measured on meta tensors. The VAE decodes four
# frames at a time, so this does not grow with the length of the video. A clip is encoded so too: beside that its frames
# and some of their latents are held, `_PER_FRAME` elements a pixel.
_DECODING, _ENCODING, _ENCODING_CLIP, _PER_FRAME = 5080, 970, 3700, 4


@dataclass(frozen=True)
class ModelSizes:
    """Parameter counts.

    Attributes:
        transformer, block: the whole transformer, and one block.
        text, text_table, text_block: the text encoder, its embedding table, and one block.
        image, vae: the image encoder (0 if there is none) and the VAE.
        vae_width: channels of the VAE's outermost blocks (not a count).
    """

    transformer: int
    block: int
    text: int
    text_table: int
    text_block: int
    image: int
    vae: int
    vae_width: int = 96


def stage_bytes(
    mode: str,
    sizes: ModelSizes,
    config: ContextAnyoneConfig,
    video: Video,
    dtype_size: int = 2,
    spec: ModelSpec = MODELS["contextanyone"],
) -> dict[str, int]:
    """Peak bytes on the device of each stage of a generation: `prompts`, `references`, `denoise`, `decode`.

    The CUDA context and fragmentation of the allocator are not included.

    Args:
        mode: one of `MODES`.
        sizes: parameter counts.
        config: config of the transformer.
        video: size and references of the video.
        dtype_size: bytes per element of the compute dtype.
        spec: the model, which decides what its references take.
    """
    shape = video.shape
    encoding = encode_bytes(shape if video.pose else _picture(video, spec), dtype_size, sizes.vae_width)
    working = _denoising_bytes(mode, config, video, dtype_size, spec)
    decoding = decode_bytes(shape, dtype_size, sizes.vae_width, tiled=mode != "high")
    vae, image = sizes.vae * dtype_size, sizes.image * dtype_size
    transformer, text = sizes.transformer * dtype_size, sizes.text * dtype_size
    if mode == "high":
        held = transformer + text + image + vae
        work = {"prompts": _TEXT_WORK, "references": encoding, "denoise": working, "decode": decoding}
        return {stage: held + size for stage, size in work.items()}
    if mode == "low":  # two blocks in fp8, and the matrix in use
        rest = sizes.transformer - config.num_layers * sizes.block
        transformer = rest * dtype_size + 2 * sizes.block + config.dim * config.ffn_dim * dtype_size
    return {
        "prompts": vae + (sizes.text_table + 2 * sizes.text_block) * dtype_size + _TEXT_WORK,
        "references": vae + max(image, encoding),
        "denoise": vae + transformer + working,
        "decode": vae + decoding,
    }


def encode_bytes(video: VideoShape, dtype_size: int, width: int = 96) -> int:
    """Peak bytes of encoding one picture or clip with Wan's VAE of this width, without its weights."""
    pixels, frames = video.height * video.width * dtype_size, video.num_frames
    if frames == 1:
        return _ENCODING * width // 96 * pixels
    return (_ENCODING_CLIP * width // 96 + _PER_FRAME * frames) * pixels


def decode_bytes(video: VideoShape, dtype_size: int, width: int = 96, *, tiled: bool) -> int:
    """Peak bytes of decoding one video with Wan's VAE of this width, without its weights."""
    pixels = video.num_frames * video.height * video.width * 3
    handed_over = pixels * (dtype_size + 4)
    tiled = tiled and max(video.height, video.width) > _TILE
    area = min(video.height, _TILE) * min(video.width, _TILE) if tiled else video.height * video.width
    kept = pixels * dtype_size * (1.8 if tiled else 1)  # tiles overlap
    return max(handed_over, int(_DECODING * width // 96 * area * dtype_size + kept))


def step_cache_bytes(config: ContextAnyoneConfig, video: VideoShape, dtype_size: int) -> int:
    """Bytes of a step cache for three passes: per pass, the first block's output and residual, the others' residual."""
    return 3 * 3 * video.token_count(config) * config.dim * dtype_size


def fitting_mode(free: int, stages: Mapping[str, Mapping[str, int]]) -> str | None:
    """The fastest mode whose largest stage fits into nine tenths of the free bytes; None if none does."""
    return next((mode for mode in MODES if max(stages[mode].values()) <= MOST_OF_FREE * free), None)


def _picture(video: Video, spec: ModelSpec) -> VideoShape:
    """What a reference is encoded as; of its own size, the largest that it can have."""
    return VideoShape(1, LONG_EDGE, LONG_EDGE) if spec.own_size else video.shape.picture


def _denoising_bytes(mode: str, config: ContextAnyoneConfig, video: Video, dtype_size: int, spec: ModelSpec) -> int:
    shape = video.shape.latents_shape(config)
    tokens = video.references * _picture(video, spec).token_count(config)
    if spec.one_stream:
        return one_stream_bytes(config, shape, reference_tokens=tokens, dtype_size=dtype_size)
    clip = video.references * CLIP_TOKENS if config.image_dim is not None else 0
    whole = forward_bytes(config, shape, reference_tokens=tokens, image_tokens=clip, dtype_size=dtype_size)
    cache = cache_bytes(config, tokens, clip, dtype_size)
    if mode != "low":
        return whole
    # the cache is on the CPU and copied block by block; it is complete on the device once, before the video
    return max(whole - cache + 2 * cache // config.num_layers, cache)
