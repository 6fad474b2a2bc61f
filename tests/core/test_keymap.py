"""The name tables, against real modules of diffusers."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.name_tables import (
    inverse,
    rename,
    transformer_table,
    vae_from_diffusers,
    vae_table,
    vae_to_diffusers,
)


@pytest.fixture(scope="module")
def vae_state():
    with torch.device("meta"):
        return AutoencoderKLWan(base_dim=8, z_dim=16).state_dict()


@pytest.mark.parametrize("table", [transformer_table(3), vae_table()])
def test_tables_lead_back(table):
    assert len(inverse(table)) == len(table)
    assert inverse(inverse(table)) == table


def test_vae_names_lead_both_ways(vae_state):
    original = vae_from_diffusers(vae_state)
    assert len(original) == len(vae_state)
    back = vae_to_diffusers(original)
    assert back.keys() == vae_state.keys()
    assert all(back[name] is vae_state[name] for name in back)


def test_diffusers_reads_our_vae_names_as_we_do(vae_state):
    assert convert_wan_vae_to_diffusers(vae_from_diffusers(vae_state)).keys() == vae_state.keys()


def wan_vae_names():
    """Every name of Wan 2.1's VAE file, spelled out from its structure."""

    def layers(*modules):
        return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}

    def residual(prefix, shortcut=False):
        names = {f"{prefix}.residual.{index}.gamma" for index in (0, 3)}
        names |= layers(f"{prefix}.residual.2", f"{prefix}.residual.6")
        return names | (layers(f"{prefix}.shortcut") if shortcut else set())

    names = layers("conv1", "conv2")
    for coder in ("encoder", "decoder"):
        names |= layers(f"{coder}.conv1", f"{coder}.head.2") | {f"{coder}.head.0.gamma"}
        names |= residual(f"{coder}.middle.0") | residual(f"{coder}.middle.2")
        names |= layers(f"{coder}.middle.1.to_qkv", f"{coder}.middle.1.proj") | {f"{coder}.middle.1.norm.gamma"}
    for index in (0, 1, 3, 4, 6, 7, 9, 10):
        names |= residual(f"encoder.downsamples.{index}", shortcut=index in (3, 6))
    names |= layers(*(f"encoder.downsamples.{index}.resample.1" for index in (2, 5, 8)))
    names |= layers(*(f"encoder.downsamples.{index}.time_conv" for index in (5, 8)))
    for index in (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14):
        names |= residual(f"decoder.upsamples.{index}", shortcut=index == 4)
    names |= layers(*(f"decoder.upsamples.{index}.resample.1" for index in (3, 7, 11)))
    return names | layers(*(f"decoder.upsamples.{index}.time_conv" for index in (3, 7)))


def test_vae_names_are_exactly_wans(vae_state):
    assert vae_from_diffusers(vae_state).keys() == wan_vae_names()


def test_the_transformer_table_knows_every_name():
    config = ContextAnyoneConfig.tiny()
    state = ContextAnyoneTransformer(config, device="meta").state_dict()
    table = transformer_table(config.num_layers)
    theirs = rename(state, table)
    assert len(theirs) == len(state)
    assert rename(theirs, inverse(table)).keys() == state.keys()
    assert "blocks.1.norm2.weight" in theirs  # Wan's norm3
    assert "blocks.0.emphasize_attn.to_out.0.bias" in theirs


def test_unknown_names_are_listed():
    with pytest.raises(CheckpointError, match=r"2 names .*foo\.weight, blocks\.9\.ffn\.0\.bias"):
        rename({"foo.weight": 0, "blocks.9.ffn.0.bias": 0, "head.head.weight": 0}, transformer_table(2))
