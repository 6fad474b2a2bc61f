"""The model config: stored as JSON, strict when read."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextanyone_core.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, ContextAnyoneConfig
from contextanyone_core.errors import InputError

PRESETS = [getattr(ContextAnyoneConfig, name)() for name in ("wan_1_3b", "wan_14b", "miniature", "tiny")]


@pytest.mark.parametrize("config", PRESETS)
def test_presets_survive_json(config):
    assert ContextAnyoneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(st.floats(-50, 50), st.integers(1, 4), st.none() | st.integers(1, 9))
def test_any_config_survives_json(gap, layers, image_dim):
    config = replace(
        ContextAnyoneConfig.tiny(),
        gap=gap,
        num_layers=layers,
        image_dim=image_dim,
        latent_rgb_factors=((0.1, 0.2, gap),) * 16,
        latent_rgb_bias=(0.0, gap, 1.0),
    )
    assert ContextAnyoneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_latent_statistics_are_those_of_wans_vae():
    from diffusers import AutoencoderKLWan

    published = AutoencoderKLWan(base_dim=4, z_dim=16).config
    assert tuple(published.latents_mean) == WAN_LATENTS_MEAN
    assert tuple(published.latents_std) == WAN_LATENTS_STD


def test_unknown_key_names_the_nearest():
    values = ContextAnyoneConfig.tiny().to_dict() | {"num_layer": 3}
    with pytest.raises(InputError, match=r"'num_layer'.*Did you mean num_layers"):
        ContextAnyoneConfig.from_dict(values)


def test_missing_key_is_named():
    values = ContextAnyoneConfig.tiny().to_dict()
    del values["text_dim"]
    with pytest.raises(InputError, match="text_dim"):
        ContextAnyoneConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("dim", 50),  # head of 25
        ("num_layers", 2.0),
        ("num_heads", True),
        ("image_dim", -1),
        ("freq_dim", 31),
        ("gap", float("nan")),
        ("gap", "10"),
        ("shift", 0.0),
        ("eps", float("inf")),
        ("patch_size", (1, 2)),
        ("vae_stride", (4, 0, 8)),
        ("latents_mean", (0.0,) * 15),
        ("latents_std", (0.0,) * 16),
        ("latent_rgb_bias", (0.0, 0.0, 0.0)),
        ("latent_rgb_factors", ((0.0, 0.0),) * 16),
    ],
)
def test_impossible_values_are_refused(field, value):
    with pytest.raises(InputError):
        replace(ContextAnyoneConfig.tiny(), **{field: value})
