"""The shipped miniature: complete, small, consistent with its card, and working."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from contextanyone_core import cli
from contextanyone_core.encoders.reference import pad_picture
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import picture_to_images, read_picture
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.weights.checkpoint import describe

DEMO = Path(__file__).parents[2] / "assets/examples/red_hair_striped_shirt.png"
PARTS = ("transformer", "vae", "text_encoder", "image_encoder")


@pytest.fixture(scope="module")
def pipeline():
    return ContextAnyonePipeline.miniature()


def test_the_files_are_half_precision_and_at_most_40_mb_together():
    assert sum((MINIATURE / f"{part}.safetensors").stat().st_size for part in PARTS) <= 40_000_000
    for part in PARTS:
        assert describe(MINIATURE / f"{part}.safetensors").recognised.dtypes.keys() <= {"F16", "U8"}


def test_the_card_is_of_these_files():
    named = {}
    for card in (MINIATURE / "card").glob("*.json"):
        named |= json.loads(card.read_text(encoding="utf-8")).get("files", {})
    assert set(named) >= {f"{part}.safetensors" for part in (*PARTS, "probe", "pose_reader")}
    for name, facts in named.items():
        assert hashlib.sha256((MINIATURE / name).read_bytes()).hexdigest() == facts["sha256"], name


def test_the_preview_projection_shows_the_picture(pipeline):
    """Latents times the config's factors are a small version of the picture that they stand for."""
    config = pipeline.config
    picture = pad_picture(picture_to_images(read_picture(DEMO)), (128, 128))
    latents = pipeline.vae.encode(picture[:, :, None])[:, :, 0]
    factors, bias = torch.tensor(config.latent_rgb_factors), torch.tensor(config.latent_rgb_bias)
    preview = torch.einsum("bchw,cr->brhw", latents, factors) + bias[:, None, None]
    small = torch.nn.functional.avg_pool2d(picture, 8)
    assert torch.corrcoef(torch.stack([preview.flatten(), small.flatten()]))[0, 1] > 0.8


def test_it_makes_a_clip_and_hears_the_reference(pipeline):
    clips = [_small_clip(pipeline, [torch.full((1, 3, 64, 64), value)]) for value in (-0.5, 0.5)]
    assert clips[0].shape == (1, 3, 5, 64, 64)
    assert (clips[0] - clips[1]).abs().mean() > 0.01


def test_phantoms_miniature_lies_beside_ours_in_fp8_and_hears_the_reference():
    path = MINIATURE / "phantom.safetensors"
    assert path.stat().st_size <= 12_000_000
    assert describe(path).recognised.dtypes.keys() == {"F8_E4M3", "BF16"}
    phantom = ContextAnyonePipeline.from_folder(MINIATURE, spec=MODELS["phantom"])
    clips = [_small_clip(phantom, [torch.full((1, 3, 64, 64), value)]) for value in (-0.5, 0.5)]
    assert (clips[0] - clips[1]).abs().mean() > 0.01


def test_plain_wan_is_ours_without_a_reference(pipeline):
    wan = ContextAnyonePipeline.from_folder(MINIATURE, spec=MODELS["wan"])
    assert torch.equal(_small_clip(wan, []), _small_clip(pipeline, []))


def _small_clip(pipeline, references):
    settings = GenerationSettings(num_frames=5, width=64, height=64, steps=2)
    prompt = TwoStagePrompt("A person.", "The same person is waving at the beach at sunset.")
    return pipeline.generate(references, prompt, settings, negative="").images


@pytest.mark.parametrize("size", ["64x64", "128x128"])
def test_a_picture_of_its_world_is_not_warned_of_at_any_size(tmp_path, capsys, size):
    short = ["--frames", "1", "--steps", "1", "--size", size, "--first", "A person.", "--later", "The same person."]
    assert cli.main(["generate", "--reference", str(DEMO), *short, "--out", str(tmp_path / "clip.webp")]) == 0
    assert "is far from" not in capsys.readouterr().err
