"""The hosts against the raw diffusers and transformers modules, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder, build_image_model, load_image_encoder
from contextanyone_core.encoders.text import TextEncoder, load_text_encoder
from contextanyone_core.encoders.vae import (
    VideoVAE,
    build_vae,
    load_vae,
    mini_vae_config,
    save_vae,
    set_latent_statistics,
)
from contextanyone_core.errors import CheckpointError, InputError, MissingDependencyError, ShapeError
from contextanyone_core.late_import import host_class
from contextanyone_core.weights.checkpoint import save_safetensors
from contextanyone_core.weights.safetensors_file import read_header


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


# Text


def test_text_equals_raw_transformers_at_full_padding(tiny_text: TextEncoder) -> None:
    prompts = ["A woman with red hair.", "The same person is waving at the beach at sunset."]
    embeds = tiny_text.encode(prompts)
    assert embeds.shape == (2, 64, 32)
    for row, ids in enumerate(tiny_text.tokenize(prompts)):
        padded = torch.tensor([ids + [0] * (64 - len(ids))])
        mask = (torch.arange(64) < len(ids)).long()[None]
        with torch.no_grad():
            raw = tiny_text.model(input_ids=padded, attention_mask=mask).last_hidden_state[0]
        torch.testing.assert_close(embeds[row, : len(ids)], raw[: len(ids)], atol=1e-5, rtol=0)
        assert not embeds[row, len(ids) :].any()
        assert embeds[row, len(ids) - 1].any()


def test_text_of_a_batch_is_that_of_each_alone(tiny_text: TextEncoder) -> None:
    prompts = ["beach", "", "A man in a striped blue shirt walks along the street at night."]
    together = tiny_text.encode(prompts)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(together[row], tiny_text.encode([prompt])[0], atol=1e-5, rtol=0)


def test_tokens_end_with_eos_and_nothing_is_unknown(tiny_text: TextEncoder) -> None:
    for prompt in ("red hair", "\U0001f600 waves", "\u4e00\u4e2a\u7a7f\u7ea2\u8863\u670d\u7684\u5973\u4eba", ""):
        ids = tiny_text.tokenize([prompt])[0]
        assert ids[-1] == 1
        assert 2 not in ids
        assert tiny_text.count_tokens(prompt) == len(ids)
    assert tiny_text.count_tokens("") == 1
    assert tiny_text.encode(["\U0001f600"]).isfinite().all()


def test_text_is_never_cut(tiny_text: TextEncoder) -> None:
    prompt = "The same person is waving. " * 20
    count = tiny_text.count_tokens(prompt)
    with pytest.raises(InputError, match=f"{count} tokens, {count - 64} more than the 64"):
        tiny_text.encode([prompt])


def test_text_file_round_trip(tiny_folder: Path, tiny_text: TextEncoder) -> None:
    loaded = load_text_encoder(tiny_folder / "text_encoder.safetensors")
    assert loaded.text_len == 64
    assert torch.equal(loaded.encode(["red hair"]), tiny_text.encode(["red hair"]))
    names = read_header(tiny_folder / "text_encoder.safetensors").tensors
    assert names["spiece_model"].dtype == "U8"
    assert {"shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"} <= names.keys()
    assert "encoder.embed_tokens.weight" not in names


# Image


def test_image_equals_raw_transformers(tiny_folder: Path) -> None:
    path = tiny_folder / "image_encoder.safetensors"
    encoder = load_image_encoder(path)
    raw = build_image_model(read_header(path).config).eval()
    prefixed = any(name.startswith("vision_model.") for name in raw.state_dict())
    stored = load_file(path)
    assert all(name.startswith("vision_model.") for name in stored)
    raw.load_state_dict({name if prefixed else name.removeprefix("vision_model."): v for name, v in stored.items()})
    pictures = images(2, 3, 16, 16)
    normalised = torch.stack([((pictures[:, c] + 1) / 2 - CLIP_MEAN[c]) / CLIP_STD[c] for c in range(3)], dim=1)
    with torch.no_grad():
        states = raw(pixel_values=normalised, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(encoder.encode(pictures), states[3], atol=1e-5, rtol=0)
    assert encoder.encode(pictures).shape == (2, 5, 24)


def test_image_of_another_size_is_refused(tiny_folder: Path) -> None:
    encoder: ImageEncoder = load_image_encoder(tiny_folder / "image_encoder.safetensors")
    for shape in ((1, 3, 32, 32), (0, 3, 16, 16), (3, 16, 16)):
        with pytest.raises(ShapeError, match=r"\(B, 3, 16, 16\)"):
            encoder.encode(torch.zeros(shape))


# VAE


def test_vae_equals_raw_diffusers(tiny_folder: Path, tiny_config: ContextAnyoneConfig) -> None:
    raw = load_vae(tiny_folder / "vae.safetensors")
    vae = VideoVAE(raw, tiny_config)
    video = images(1, 3, 5, 32, 16)
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (tiny_config.latents_mean, tiny_config.latents_std))
    with torch.no_grad():
        expected = (raw.encode(video).latent_dist.mode() - mean) / std
        decoded = raw.decode(expected * std + mean).sample.clamp(-1, 1)
    latents = vae.encode(video)
    assert latents.shape == (1, 16, 2, 4, 2)
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(vae.decode(latents), decoded, atol=1e-5, rtol=0)
    assert vae.decode(latents * 100).abs().max() <= 1


def test_vae_file_has_wan_names_and_fits_diffusers(tiny_folder: Path, tmp_path: Path) -> None:
    names = read_header(tiny_folder / "vae.safetensors").tensors
    assert {"encoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight"} <= names.keys()
    vae = build_vae(mini_vae_config() | {"base_dim": 4})
    set_latent_statistics(vae, [0.5] * 16, [2.0] * 16)
    save_vae(vae, tmp_path / "vae.safetensors", {"seed": "3"}, dtype=torch.float32)
    loaded = load_vae(tmp_path / "vae.safetensors")
    assert loaded.config.latents_std == [2.0] * 16
    assert read_header(tmp_path / "vae.safetensors").metadata["seed"] == "3"
    for name, value in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_vae_in_bf16_is_near_float32(tiny_folder: Path) -> None:
    exact = VideoVAE(load_vae(tiny_folder / "vae.safetensors"))
    fast = VideoVAE(load_vae(tiny_folder / "vae.safetensors", torch.bfloat16))
    video = images(1, 3, 5, 32, 32)
    latents = fast.encode(video)
    assert latents.dtype == torch.float32
    assert (latents - exact.encode(video)).abs().mean() < 0.02
    assert (fast.decode(latents) - exact.decode(latents)).abs().mean() < 0.03


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 4, 5, 16, 16), (3, 5, 16, 16), (0, 3, 5, 16, 16), (1, 3, 5, 0, 16)],
)
def test_vae_refuses_shapes_that_it_would_crop(tiny_folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        VideoVAE(load_vae(tiny_folder / "vae.safetensors")).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 4, 1, 2, 2), (16, 1, 2, 2), (0, 16, 1, 2, 2), (1, 16, 0, 2, 2)])
def test_vae_refuses_latents_of_other_shapes(tiny_folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="latents have shape"):
        VideoVAE(load_vae(tiny_folder / "vae.safetensors")).decode(torch.zeros(shape))


def test_vae_of_another_transformer_is_refused(tiny_folder: Path, tiny_config: ContextAnyoneConfig) -> None:
    other = replace(tiny_config, latents_std=(2.0,) * 16)
    with pytest.raises(CheckpointError, match="latents_std of the VAE and of the transformer differ"):
        VideoVAE(load_vae(tiny_folder / "vae.safetensors"), other)


# Files


def test_another_kind_of_file_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="clip-vision"):
        load_text_encoder(tiny_folder / "image_encoder.safetensors")
    with pytest.raises(CheckpointError, match="umt5-encoder"):
        load_vae(tiny_folder / "text_encoder.safetensors")


def test_missing_unknown_and_misshaped_tensors_are_listed(tiny_folder: Path, tmp_path: Path) -> None:
    source = tiny_folder / "image_encoder.safetensors"
    header, tensors = read_header(source), load_file(source)
    del tensors["vision_model.pre_layrnorm.weight"]
    tensors["vision_model.extra"] = torch.zeros(1)
    tensors["vision_model.pre_layrnorm.bias"] = torch.zeros(3)
    bad = tmp_path / "bad.safetensors"
    save_safetensors(bad, tensors, kind="clip-vision", config=header.config)
    with pytest.raises(CheckpointError) as caught:
        load_image_encoder(bad)
    for part in ("missing", "pre_layrnorm.weight", "unknown", "extra", "pre_layrnorm.bias is 3, needed 24"):
        assert part in str(caught.value)


def test_nan_and_foreign_config_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    source = tiny_folder / "vae.safetensors"
    header, tensors = read_header(source), load_file(source)
    save_safetensors(tmp_path / "a.safetensors", tensors, kind="wan-vae", config={**header.config, "depth": 3})
    with pytest.raises(CheckpointError, match="unknown depth"):
        load_vae(tmp_path / "a.safetensors")
    tensors["conv2.bias"][0] = torch.nan
    save_safetensors(tmp_path / "b.safetensors", tensors, kind="wan-vae", config=header.config)
    with pytest.raises(CheckpointError, match=r"NaN.*conv2\.bias"):
        load_vae(tmp_path / "b.safetensors")


def test_text_file_without_tokenizer_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    source = tiny_folder / "text_encoder.safetensors"
    tensors = {name: value for name, value in load_file(source).items() if name != "spiece_model"}
    save_safetensors(tmp_path / "t.safetensors", tensors, kind="umt5-encoder", config=read_header(source).config)
    with pytest.raises(CheckpointError, match="spiece_model"):
        load_text_encoder(tmp_path / "t.safetensors")


def test_missing_package_names_the_pip_command() -> None:
    wanted = r'Run: pip install --upgrade a_package_that_is_not_there, or, in a clone,.* pip install -e "\.\[cli\]"'
    with pytest.raises(MissingDependencyError, match=wanted):
        host_class("a_package_that_is_not_there.module", "Thing")
