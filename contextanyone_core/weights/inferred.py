"""Config inference for public files without our header: from the shapes of their tensors (under our names)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, ContextAnyoneConfig
from ..errors import CheckpointError, InputError
from .naming import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE, WAN
from .tensors import TensorInfo

HEAD_WIDTH = 128
"""Channels of an attention head in every Wan transformer."""
_CLIP_HEAD_WIDTH = 80  # ViT-H/14
_TEXT_LEN, _TEXT_DIM = 512, 4096

Tensors = Mapping[str, TensorInfo]


def infer_config(kind: str, tensors: Tensors, num_layers: int) -> dict[str, Any]:
    """The config of a file of `kind`, in the form that our files have in the header.

    Args:
        kind: `wan-transformer`, `contextanyone-transformer`, `wan-vae`, `umt5-encoder` or `clip-vision`.
        tensors: the file's tensors, by our names.
        num_layers: number of blocks in the file.

    Raises:
        CheckpointError: tensors that are needed for it are missing, or have shapes that no such model has.
    """
    known: dict[str, Callable[[Tensors, int], dict[str, Any]]] = {
        WAN: _transformer,
        TRANSFORMER: _transformer,
        VAE: _vae,
        TEXT_ENCODER: _text,
        IMAGE_ENCODER: _image,
    }
    if kind not in known:
        raise CheckpointError(f"A {kind} file needs its config in the header.")
    try:
        return known[kind](tensors, num_layers)
    except (ValueError, ZeroDivisionError, InputError) as error:
        reason = "a side of a tensor is 0" if isinstance(error, ZeroDivisionError) else str(error)
        raise CheckpointError(f"Its tensors are not those of a whole {kind}: {reason}.") from error


def _sides(tensors: Tensors, name: str, count: int) -> tuple[int, ...]:
    """The shape of a tensor, which must exist and have `count` dimensions."""
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    shape = tensors[name].shape
    if len(shape) != count:
        raise ValueError(
            f"{name} has the shape {'x'.join(map(str, shape)) or 'of one number'}; {count} sides are needed"
        )
    return shape


def _transformer(tensors: Tensors, num_layers: int) -> dict[str, Any]:
    dim, channels, *patch = _sides(tensors, "patch_embedding.weight", 5)
    image = "img_emb.proj.0.weight"
    text_dim = _sides(tensors, "text_embedding.0.weight", 2)[1]
    emphasize = any(".emphasize_attn." in name for name in tensors)
    if emphasize and text_dim != _TEXT_DIM:  # heads, gap and statistics of the latents cannot be read off the shapes
        raise ValueError(
            f"its config is missing, and with text embeddings {text_dim} wide, where the full size has {_TEXT_DIM}, it "
            "is a smaller model that cannot be run without one; take the file that it was saved from"
        )
    if dim % HEAD_WIDTH:
        raise ValueError(f"its width is {dim}, and Wan's heads are {HEAD_WIDTH} wide")
    out_dim = _sides(tensors, "head.head.weight", 2)[0] // math.prod(patch)
    in_dim = out_dim if channels == 3 * out_dim else channels  # noise | pose | start, as Wan2.1-Fun-Control
    wan = in_dim == len(WAN_LATENTS_MEAN)
    config = ContextAnyoneConfig(
        dim=dim,
        ffn_dim=_sides(tensors, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=dim // HEAD_WIDTH,
        num_layers=num_layers,
        text_dim=text_dim,
        text_len=_TEXT_LEN,
        image_dim=_sides(tensors, image, 1)[0] if image in tensors else None,
        in_dim=in_dim,
        out_dim=out_dim,
        condition_dim=channels - in_dim,
        freq_dim=_sides(tensors, "time_embedding.0.weight", 2)[1],
        patch_size=(patch[0], patch[1], patch[2]),
        emphasize=emphasize,
        latents_mean=WAN_LATENTS_MEAN if wan else (0.0,) * in_dim,
        latents_std=WAN_LATENTS_STD if wan else (1.0,) * in_dim,
    )
    return config.to_dict()


def _vae(tensors: Tensors, num_layers: int) -> dict[str, Any]:
    channels = _sides(tensors, "conv2.weight", 5)[0]
    if channels != len(WAN_LATENTS_MEAN):
        raise ValueError(f"it has {channels} latent channels, and Wan 2.1's VAE has {len(WAN_LATENTS_MEAN)}")
    return {
        "base_dim": _sides(tensors, "encoder.conv1.weight", 5)[0],
        "z_dim": channels,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "latents_mean": list(WAN_LATENTS_MEAN),
        "latents_std": list(WAN_LATENTS_STD),
    }


def _text(tensors: Tensors, num_layers: int) -> dict[str, Any]:
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = _sides(tensors, "shared.weight", 2)
    heads = _sides(tensors, f"{attention}.relative_attention_bias.weight", 2)[1]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": _sides(tensors, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
        "d_kv": _sides(tensors, f"{attention}.q.weight", 2)[0] // heads,
        "num_heads": heads,
        "num_layers": num_layers,
        "text_len": _TEXT_LEN,
    }


def _image(tensors: Tensors, num_layers: int) -> dict[str, Any]:
    (width,) = _sides(tensors, "vision_model.embeddings.class_embedding", 1)
    patch = _sides(tensors, "vision_model.embeddings.patch_embedding.weight", 4)[-1]
    positions = _sides(tensors, "vision_model.embeddings.position_embedding.weight", 2)[0]
    if width % _CLIP_HEAD_WIDTH:
        raise ValueError(f"its width is {width}; needed is ViT-H/14, 1280 wide with heads of {_CLIP_HEAD_WIDTH}")
    return {
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": _sides(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // _CLIP_HEAD_WIDTH,
        "hidden_act": "gelu",
    }
