"""The part without a reference stream: references joined to the video, as Phantom, RefAlign and Bernini do."""

from dataclasses import replace

import pytest
import torch
from tiny_transformer_part import loss_of, tiny_transformer_part

from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import frames_to_images, picture_to_images
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import InContextReferences
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.weights.checkpoint import load_transformer
from training.data.frames import on_white
from training.data.pool import PoolKey
from training.parts.objective import fixed_draws
from training.world import TEST_SEED_START, sample

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture
def part(tiny_folder, tmp_path):
    return tiny_transformer_part(tiny_folder, tmp_path / "pools")


@pytest.fixture(params=["phantom", "refalign", "bernini"])
def one_stream(request, tiny_folder, tmp_path):
    joined = {"reading": request.param, "drop_reference": 0.0, "drop_text": 0.0}
    return tiny_transformer_part(tiny_folder, tmp_path / "pools", **joined)


def some_step(part):
    """A batch, draws of it at noise level 0.7 and a text, all fixed."""
    clips, config = part.encoded(part.batch(2)), part.transformer.config
    draws = fixed_draws(clips, 0.7, torch.Generator().manual_seed(1))
    text = torch.randn(2, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(2))
    return clips, draws, text


def test_one_stream_starts_from_the_backbone_of_ours_and_joins_the_references(one_stream, part):
    theirs, ours = one_stream.transformer.state_dict(), part.transformer.state_dict()
    assert not [name for name in theirs if "emphasize" in name or "img" in name]
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)

    clips, draws, text = some_step(one_stream)
    loss, metrics = loss_of(one_stream, clips, draws, text)
    noisy, level = 0.3 * clips.latents + 0.7 * draws.noise, torch.full((2,), 700.0)
    if one_stream.settings.reading == "bernini":  # a grid of its own
        references = InContextReferences([clips.reference_latents])
        velocity = one_stream.transformer(noisy, level, text, references=references).velocity
    else:  # frames of the video
        frames = torch.cat([noisy, clips.reference_latents], dim=2)
        textless = VideoCondition(textless_frames=int(one_stream.settings.reading == "refalign"))
        velocity = one_stream.transformer(frames, level, text, condition=textless).velocity[:, :, :2]
    error = (velocity - (draws.noise - clips.latents)) ** 2 * clips.weights
    expected = error.sum((1, 2, 3, 4)) / (clips.weights.sum((1, 2, 3, 4)) * 16)
    torch.testing.assert_close(loss, expected)
    assert "reference" not in metrics


def test_a_dropped_reference_is_what_the_mode_shows_without_one(one_stream):
    """Zeros of Phantom and RefAlign; Bernini is plain Wan in passes without pictures."""
    clips, draws, text = some_step(one_stream)
    dropped = loss_of(one_stream, clips, replace(draws, reference=None), text)[0]
    blank = replace(clips, reference_latents=torch.zeros_like(clips.reference_latents))
    none = one_stream.settings.reading == "bernini"
    assert torch.equal(dropped, loss_of(one_stream, blank, draws, text)[0]) != none
    other = replace(clips, reference_latents=clips.reference_latents.flip(0))
    assert torch.equal(dropped, loss_of(one_stream, other, replace(draws, reference=None), text)[0])
    assert not torch.equal(dropped, loss_of(one_stream, clips, draws, text)[0])


def test_refaligns_references_are_all_cut_out_on_white(one_stream):
    cut_out = one_stream.settings.reading == "refalign"
    key = PoolKey(one_stream._key.encoders, 0, 5, 32, 4, cut_out=cut_out)
    assert one_stream._key == key
    pictures = [sample(key.world_seed(index), 5, (32, 32)) for index in range(4)]
    white = torch.stack([encoded_picture(one_stream, on_white(one.reference, one.reference_mask)) for one in pictures])
    assert torch.allclose(one_stream.pool.reference_latents.float(), white, atol=2e-2) == cut_out


def encoded_picture(part, picture):
    return part.vae.encode(frames_to_images(picture[None]))[0].float()


def test_one_stream_learns_and_its_export_generates(one_stream, tmp_path):
    clips, draws, text = some_step(one_stream)
    optimizer = torch.optim.AdamW(one_stream.transformer.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = loss_of(one_stream, clips, draws, text)[0].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        one_stream.sample(2, tmp_path)
        one_stream.export(tmp_path, {"steps": 2})
    loaded = load_transformer(tmp_path / "transformer.safetensors", dtype=torch.float32, plain=True)
    assert not loaded.config.emphasize
    pipeline = replace_network(one_stream, loaded)
    settings = GenerationSettings(num_frames=5, width=32, height=32, steps=1)
    picture = picture_to_images(sample(TEST_SEED_START, 1, (32, 32)).reference)
    made = pipeline.generate([picture], TwoStagePrompt("A woman.", "The same person is waving."), settings)
    assert made.images.shape == (1, 3, 5, 32, 32)


def replace_network(part, network):
    return ContextAnyonePipeline(network, part.vae, part.text_encoder, None, MODELS[part.settings.reading])
