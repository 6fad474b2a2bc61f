"""Name tables between Wan 2.1's original parameter names and those of diffusers or transformers.

A table maps the name of a module (or bare parameter) in our files to its name in another naming; the last component
(`weight`, `bias`, `gamma`) does not change. `rename` applies a table, `inverse` swaps its two sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..errors import CheckpointError

Value = TypeVar("Value")

OUTPUT_NAMINGS = ("original", "comfyui", "diffusers")
"""Namings that `contextanyone convert` writes."""

_TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",  # of first-and-last-frame models only
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",  # Wan counts the norm before the cross-attention last, diffusers in order of use
    "norm2": "norm3",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{wan}": f"attn1.{diffusers}" for wan, diffusers in _ATTENTION.items()},
    **{f"cross_attn.{wan}": f"attn2.{diffusers}" for wan, diffusers in _ATTENTION.items()},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm_emphasize": "norm_emphasize",  # this project's module, absent from diffusers, in diffusers' style
    **{f"emphasize_attn.{wan}": f"emphasize_attn.{diffusers}" for wan, diffusers in _ATTENTION.items()},
}

_VAE_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_VAE_CODER = {
    "conv1": "conv_in",
    **{f"middle.0.{wan}": f"mid_block.resnets.0.{diffusers}" for wan, diffusers in _VAE_RESIDUAL.items()},
    **{f"middle.1.{name}": f"mid_block.attentions.0.{name}" for name in ("norm", "to_qkv", "proj")},
    **{f"middle.2.{wan}": f"mid_block.resnets.1.{diffusers}" for wan, diffusers in _VAE_RESIDUAL.items()},
    "head.0": "norm_out",
    "head.2": "conv_out",
}

_TEXT = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
    "spiece_model": "spiece_model",  # the tokenizer, absent from original files
}
_TEXT_BLOCK = {
    **{f"layer.0.SelfAttention.{name}": f"attn.{name}" for name in ("q", "k", "v", "o")},
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
_IMAGE = {
    "vision_model.embeddings.class_embedding": "visual.cls_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.pos_embedding",
    "vision_model.embeddings.patch_embedding": "visual.patch_embedding",
    "vision_model.pre_layrnorm": "visual.pre_norm",
    "vision_model.post_layernorm": "visual.post_norm",
}
_IMAGE_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_IMAGE_THIRDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def transformer_table(num_layers: int) -> dict[str, str]:
    """Transformer: Wan's names -> diffusers' `WanTransformer3DModel`, with CLIP branch and Emphasize-Attention."""
    table = dict(_TRANSFORMER)
    for layer in range(num_layers):
        table |= {f"blocks.{layer}.{wan}": f"blocks.{layer}.{diffusers}" for wan, diffusers in _BLOCK.items()}
    return table


def vae_table(levels: int = 4, res_blocks: int = 2) -> dict[str, str]:
    """VAE: Wan's original names -> diffusers' `AutoencoderKLWan`.

    Args:
        levels: number of resolutions, the length of dim_mult; each but the last ends with a resampling layer.
        res_blocks: residual blocks per level in the encoder; the decoder has one more.
    """
    table = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for coder in ("encoder", "decoder"):
        table |= {f"{coder}.{wan}": f"{coder}.{diffusers}" for wan, diffusers in _VAE_CODER.items()}
    # Wan numbers residual blocks and resampling layers in one list; diffusers does so in the encoder only.
    for level in range(levels):
        first = level * (res_blocks + 1)
        for index in range(first, first + res_blocks):
            table |= _submodules(f"encoder.downsamples.{index}", f"encoder.down_blocks.{index}", _VAE_RESIDUAL)
        last = first + res_blocks
        table |= _submodules(f"encoder.downsamples.{last}", f"encoder.down_blocks.{last}", _VAE_RESAMPLE)
        first = level * (res_blocks + 2)
        for index in range(res_blocks + 1):
            theirs = f"decoder.up_blocks.{level}.resnets.{index}"
            table |= _submodules(f"decoder.upsamples.{first + index}", theirs, _VAE_RESIDUAL)
        theirs = f"decoder.up_blocks.{level}.upsamplers.0"
        table |= _submodules(f"decoder.upsamples.{first + res_blocks + 1}", theirs, _VAE_RESAMPLE)
    return table


def text_table(num_layers: int) -> dict[str, str]:
    """umT5: names of transformers' `UMT5EncoderModel` (as in our files) -> Wan's original."""
    table = dict(_TEXT)
    for layer in range(num_layers):
        table |= _submodules(f"encoder.block.{layer}", f"blocks.{layer}", _TEXT_BLOCK)
    return table


def image_table(num_layers: int) -> dict[str, str]:
    """CLIP's vision tower: transformers' names (as in our files) -> Wan's original, except for `image_thirds`."""
    table = dict(_IMAGE)
    for layer in range(num_layers):
        table |= _submodules(f"vision_model.encoder.layers.{layer}", f"visual.transformer.{layer}", _IMAGE_BLOCK)
    return table


def image_thirds(num_layers: int) -> dict[str, tuple[str, str, str]]:
    """Modules of Wan's original vision tower with fused queries, keys and values -> our three modules."""
    q, k, v = _IMAGE_THIRDS
    ours = {layer: f"vision_model.encoder.layers.{layer}" for layer in range(num_layers)}
    return {
        f"visual.transformer.{layer}.attn.to_qkv": (f"{block}.{q}", f"{block}.{k}", f"{block}.{v}")
        for layer, block in ours.items()
    }


def image_modules(num_layers: int) -> list[str]:
    """Every module (or bare parameter) of CLIP's vision tower under transformers' names."""
    return [*image_table(num_layers), *(ours for three in image_thirds(num_layers).values() for ours in three)]


def vae_to_diffusers(values: Mapping[str, Value]) -> dict[str, Value]:
    """Wan's VAE under diffusers' names, at Wan 2.1's depth (any width).

    Raises:
        CheckpointError: names that are not of Wan 2.1's VAE.
    """
    return rename(values, vae_table())


def vae_from_diffusers(values: Mapping[str, Value]) -> dict[str, Value]:
    """The inverse of `vae_to_diffusers`.

    Raises:
        CheckpointError: names that are not of an `AutoencoderKLWan` of Wan 2.1's depth.
    """
    return rename(values, inverse(vae_table()))


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """The reverse table."""
    return {theirs: ours for ours, theirs in table.items()}


def rename(values: Mapping[str, Value], table: Mapping[str, str]) -> dict[str, Value]:
    """Rename the keys of a mapping; the values (tensors, shapes, anything) do not change.

    Raises:
        CheckpointError: a name is not in the table.
    """
    renamed: dict[str, Value] = {}
    unknown = []
    for name, value in values.items():
        other = translate(name, table)
        if other is None:
            unknown.append(name)
        else:
            renamed[other] = value
    if unknown:
        listed = ", ".join(unknown[:12]) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")
        raise CheckpointError(f"{len(unknown)} names are in no Wan model that this version knows: {listed}.")
    return renamed


def translate(name: str, table: Mapping[str, str]) -> str | None:
    """One tensor's name in the other naming, or None if the table does not have it."""
    module, _, leaf = name.rpartition(".")
    if name in table:
        return table[name]
    return f"{table[module]}.{leaf}" if module in table else None


def _submodules(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{wan}": f"{theirs}.{diffusers}" for wan, diffusers in names.items()}
