"""The same numbers as diffusers' Wan, the same names and shapes as Wan 2.1 T2V 1.3B."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.references import ReferenceCache, ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.name_tables import inverse, rename, transformer_table

TINY = ContextAnyoneConfig.tiny()
EMPHASIZE = re.compile(r"\.(norm_emphasize|emphasize_attn)\.")
CLIP = re.compile(r"^img_emb\.|\.(k_img|v_img|norm_k_img)\.")


def wan(config):
    """diffusers' transformer of the same sizes."""
    return WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        image_dim=config.image_dim,
        added_kv_proj_dim=None if config.image_dim is None else config.dim,
    )


def pair(config):
    """Our model with random weights everywhere, and diffusers' with the same ones."""
    torch.manual_seed(0)
    ours = ContextAnyoneTransformer(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {name: tensor for name, tensor in ours.state_dict().items() if not EMPHASIZE.search(name)}
    theirs = wan(config)
    theirs.load_state_dict(rename(state, transformer_table(config.num_layers)))
    return ours.eval().requires_grad_(False), theirs.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 2, 2), (3, 6, 4)])
def test_text_to_video_equals_diffusers(size):
    config = replace(TINY, image_dim=None)
    ours, theirs = pair(config)
    latents, text = torch.randn(2, 16, *size), torch.randn(2, config.text_len, config.text_dim)
    timesteps = torch.tensor([999.0, 12.5])
    expected = theirs(latents, timesteps, text, return_dict=False)[0]
    assert torch.allclose(ours(latents, timesteps, text).velocity, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_clip_branch_equals_diffusers():
    config = replace(TINY, text_len=512)  # diffusers splits text and CLIP tokens at 512
    ours, theirs = pair(config)
    latents, text = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 512, config.text_dim)
    tokens, timesteps = torch.randn(2, 7, config.image_dim), torch.tensor([700.0, 40.0])
    cache = ours.encode_references(ReferenceInputs([torch.randn(2, 16, 1, 2, 2)], text, [tokens]))
    # Wan's image-to-video has CLIP tokens but no reference tokens: drop those and keep the rest.
    empty = [
        block._replace(self_attn=type(block.self_attn)(*(x[:, :0] for x in block.self_attn))) for block in cache.blocks
    ]
    output = ours(latents, timesteps, text, cache=ReferenceCache(empty, []), emphasis=0.0).velocity
    expected = theirs(latents, timesteps, text, tokens, return_dict=False)[0]
    assert torch.allclose(output, expected, atol=1e-4)
    assert not torch.allclose(output, ours(latents, timesteps, text).velocity, atol=1e-2)


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def count(found):
    return sum(torch.Size(shape).numel() for shape in found.values())


def test_every_name_and_shape_of_wan_1_3b_is_there():
    config = ContextAnyoneConfig.wan_1_3b()
    ours = shapes(ContextAnyoneTransformer(config, device="meta"))
    with torch.device("meta"):
        published = shapes(wan(replace(config, image_dim=None)))
    plain = rename(published, inverse(transformer_table(config.num_layers)))
    assert count(plain) == 1_418_996_800
    assert {name: ours[name] for name in plain} == plain

    new = {name: shape for name, shape in ours.items() if name not in plain}
    emphasize = {name: shape for name, shape in new.items() if EMPHASIZE.search(name)}
    clip = {name: shape for name, shape in new.items() if CLIP.search(name)}
    assert emphasize.keys() | clip.keys() == new.keys()
    per_block = {name.removeprefix("blocks.7.") for name in new if name.startswith("blocks.7.")}
    layers = ("emphasize_attn.q", "emphasize_attn.k", "emphasize_attn.v", "emphasize_attn.o", "norm_emphasize")
    layers += ("cross_attn.k_img", "cross_attn.v_img")
    norms = ("emphasize_attn.norm_q", "emphasize_attn.norm_k", "cross_attn.norm_k_img")
    assert per_block == {f"{x}.{leaf}" for x in layers for leaf in ("weight", "bias")} | {f"{x}.weight" for x in norms}
    dim, image_dim = config.dim, config.image_dim
    assert count(emphasize) == 30 * (4 * (dim * dim + dim) + 2 * dim + 2 * dim) == 283_484_160
    projector = image_dim * image_dim + image_dim + image_dim * dim + dim + 2 * image_dim + 2 * dim
    assert count(clip) == 30 * (2 * (dim * dim + dim) + dim) + projector


def test_an_image_to_video_model_has_our_clip_names():
    with torch.device("meta"):
        published = shapes(wan(TINY))
    renamed = rename(published, inverse(transformer_table(TINY.num_layers)))
    ours = shapes(ContextAnyoneTransformer(TINY, device="meta"))
    assert renamed == {name: shape for name, shape in ours.items() if not EMPHASIZE.search(name)}
