"""The pipeline with a whole stack at tiny size: real classes, random weights, files on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError, InputError, ShapeError
from contextanyone_core.generation.pipeline import (
    Conditions,
    ContextAnyonePipeline,
    GenerationSettings,
    stack_conditions,
)
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.devices import check_device
from contextanyone_core.sampling.flow import sigma_schedule
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance
from contextanyone_core.sampling.schedulers import make_sampler
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer

SMALL = GenerationSettings(num_frames=5, width=32, height=32, steps=2, seed=5, guidance=CfgGuidance(3.0))
PROMPT = TwoStagePrompt("A woman with red hair.", "The same person is waving.")


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> ContextAnyonePipeline:
    return ContextAnyonePipeline.from_folder(tiny_folder)


def picture(seed: int = 0, height: int = 40, width: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encoded(pipeline: ContextAnyonePipeline, seeds: list[int], prompt: TwoStagePrompt = PROMPT) -> Conditions:
    references = [pipeline.dual_encoder.encode(picture(seed), SMALL.size) for seed in seeds]
    return pipeline.conditions(references, prompt)


def test_a_video_comes_out_the_same_every_time(pipeline: ContextAnyonePipeline, tiny_folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    result = pipeline.generate([picture()], PROMPT, SMALL, progress=lambda done, total: steps.append((done, total)))
    assert result.images.shape == (1, 3, 5, 32, 32)
    assert result.latents.shape == (1, 16, 2, 4, 4)
    assert result.images.isfinite().all()
    assert result.images.abs().max() <= 1
    assert steps == [(1, 2), (2, 2)]
    again = ContextAnyonePipeline.from_folder(tiny_folder).generate([picture()], PROMPT, SMALL)
    assert torch.equal(again.images, result.images)
    other = pipeline.generate([picture()], PROMPT, replace(SMALL, seed=6))
    assert not torch.equal(other.images, result.images)


@pytest.mark.parametrize(
    "change",
    [
        {"emphasis": 0.0},
        {"gap": 3.0},
        {"shift": 1.0},
        {"sampler": "euler"},
        {"sampler": "dpmpp_2m"},
        {"guidance": DualGuidance(3.0, 2.0)},
    ],
)
def test_every_setting_is_heard(pipeline: ContextAnyonePipeline, change: dict[str, Any]) -> None:
    settings = replace(SMALL, steps=3)
    conditions, noise = encoded(pipeline, [0]), pipeline.noise([5], settings)
    plain = pipeline.sample_latents(conditions, settings, noise)
    changed = pipeline.sample_latents(conditions, replace(settings, **change), noise)
    assert (plain - changed).abs().max() > 1e-4


def test_picture_prompts_and_negative_are_heard(pipeline: ContextAnyonePipeline) -> None:
    plain = pipeline.generate([picture()], PROMPT, SMALL).latents
    for other in (
        pipeline.generate([picture(9)], PROMPT, SMALL),
        pipeline.generate([picture(), picture(9)], PROMPT, SMALL),
        pipeline.generate([], PROMPT, SMALL),
        pipeline.generate([picture()], replace(PROMPT, first="A man."), SMALL),
        pipeline.generate([picture()], replace(PROMPT, later="The same person walks."), SMALL),
        pipeline.generate([picture()], PROMPT, SMALL, negative="night"),
    ):
        assert (plain - other.latents).abs().max() > 1e-5


def uncached(pipeline: ContextAnyonePipeline, conditions: Conditions, settings: GenerationSettings) -> torch.Tensor:
    """Plain cfg, written out, with the references run anew at every step."""
    sampler = make_sampler(settings.sampler, sigma_schedule(settings.steps, pipeline.config.shift))
    x = pipeline.noise([settings.seed], settings)
    with torch.no_grad():
        for index, sigma in enumerate(sampler.sigmas[:-1].tolist()):
            timesteps = torch.full((1,), 1000.0 * sigma)
            prompt = pipeline.transformer(x, timesteps, conditions.text_embeds, references=conditions.references)
            negative = pipeline.transformer(x, timesteps, conditions.negative_embeds)
            velocity = negative.velocity + 3.0 * (prompt.velocity - negative.velocity)
            x = sampler.step(velocity, index, x)
    return x


def test_cached_equals_uncached_bit_for_bit(pipeline: ContextAnyonePipeline) -> None:
    conditions = encoded(pipeline, [0, 1])
    cached = pipeline.sample_latents(conditions, SMALL, pipeline.noise([5], SMALL))
    assert torch.equal(cached, uncached(pipeline, conditions, SMALL))


def count_passes(pipeline: ContextAnyonePipeline, run: Callable[[], object]) -> list[bool]:
    seen: list[bool] = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("cache") is not None), with_kwargs=True
    )
    run()
    handle.remove()
    return seen


def test_passes_of_a_step(pipeline: ContextAnyonePipeline) -> None:
    """cfg makes two passes, dual three; without a reference the passes that would be the same are made once."""
    one, dual = replace(SMALL, steps=1), replace(SMALL, steps=1, guidance=DualGuidance(3.0, 2.0))
    noise, with_reference, without = pipeline.noise([5], one), encoded(pipeline, [0]), encoded(pipeline, [])

    def passes(conditions: Conditions, settings: GenerationSettings) -> list[bool]:
        return count_passes(pipeline, lambda: pipeline.sample_latents(conditions, settings, noise))

    assert passes(with_reference, one) == [True, False]
    assert passes(with_reference, dual) == [True, True, False]
    assert passes(without, dual) == [False, False]


def test_a_video_reads_its_references_once(pipeline: ContextAnyonePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encode = pipeline.transformer.encode_references
    monkeypatch.setattr(pipeline.transformer, "encode_references", lambda given: read.append(1) or encode(given))
    pipeline.generate([picture()], PROMPT, SMALL)
    assert read == [1]


def test_without_a_reference_it_is_plain_text_to_video(pipeline: ContextAnyonePipeline) -> None:
    result = pipeline.generate([], PROMPT, SMALL)
    conditions = encoded(pipeline, [])
    assert conditions.references is None
    assert pipeline.reconstruct(conditions, SMALL) == []
    assert torch.equal(result.latents, uncached(pipeline, conditions, SMALL))
    dual = replace(SMALL, guidance=DualGuidance(3.0, 2.0))
    torch.testing.assert_close(pipeline.generate([], PROMPT, dual).latents, result.latents, atol=1e-4, rtol=0)


def test_a_batch_equals_its_videos_one_by_one(pipeline: ContextAnyonePipeline) -> None:
    other = TwoStagePrompt("A man in a striped blue shirt.", "The same person walks.")
    single = [encoded(pipeline, [0]), encoded(pipeline, [1], other)]
    seeds = [5, 6]
    together = pipeline.sample_latents(stack_conditions(single), SMALL, pipeline.noise(seeds, SMALL))
    for row, conditions in enumerate(single):
        alone = pipeline.sample_latents(conditions, SMALL, pipeline.noise(seeds[row : row + 1], SMALL))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=0)
    assert pipeline.decode(together).shape == (2, 3, 5, 32, 32)
    assert pipeline.reconstruct(stack_conditions(single), SMALL)[0].shape == (2, 3, 32, 32)


def test_batches_that_do_not_fit_are_refused(pipeline: ContextAnyonePipeline) -> None:
    one, none = encoded(pipeline, [0]), encoded(pipeline, [])
    with pytest.raises(InputError, match=r"same number of references; given are \[0, 1\]"):
        stack_conditions([one, none])
    with pytest.raises(InputError, match="number of references"):
        stack_conditions([])
    large = pipeline.conditions([pipeline.dual_encoder.encode(picture(), (48, 32))], PROMPT)
    with pytest.raises(ShapeError, match="references of one size"):
        stack_conditions([one, large])
    with pytest.raises(ShapeError, match="noise is for 2 videos, the conditions for 1"):
        pipeline.sample_latents(one, SMALL, pipeline.noise([1, 2], SMALL))


def test_in_a_batch_only_the_references_of_one_place_are_of_one_size(pipeline: ContextAnyonePipeline) -> None:
    small, large = (pipeline.dual_encoder.encode(picture(), size) for size in ((32, 32), (48, 32)))
    both = pipeline.conditions([small, large], PROMPT)
    references = stack_conditions([both, both]).references
    assert references is not None
    assert [tuple(latents.shape) for latents in references.latents] == [(2, 16, 1, 4, 4), (2, 16, 1, 6, 4)]
    with pytest.raises(ShapeError, match="references of one size"):
        stack_conditions([both, pipeline.conditions([large, small], PROMPT)])


def test_any_seed_gives_its_own_noise_whatever_the_batch(pipeline: ContextAnyonePipeline) -> None:
    largest = 2**64 - 1  # of a seed in ComfyUI, whose noise is that of torch.manual_seed
    noise = pipeline.noise([1, 2, largest], replace(SMALL, seed=largest))
    assert noise.dtype == torch.float32
    assert torch.equal(noise[1:2], pipeline.noise([2], SMALL))
    assert not torch.equal(noise[0], noise[1])
    for index, seed in ((0, 1), (2, largest)):
        assert torch.equal(noise[[index]], torch.randn(1, 16, 2, 4, 4, generator=torch.manual_seed(seed)))


def test_a_prompt_too_long_is_refused_before_any_work(pipeline: ContextAnyonePipeline) -> None:
    long = "The same person is waving at the beach at sunset. " * 8
    count = pipeline.text_encoder.count_tokens(f"A man. {long}")
    with pytest.raises(InputError, match=f"{count} tokens, {count - 64} more than the 64"):
        pipeline.generate([torch.zeros(0)], TwoStagePrompt("A man.", long), SMALL)
    with pytest.raises(InputError, match="negative prompt has"):
        pipeline.generate([picture()], PROMPT, SMALL, negative=long)


def test_bf16_runs_near_float32(tiny_folder: Path, pipeline: ContextAnyonePipeline) -> None:
    half = ContextAnyonePipeline.from_folder(tiny_folder, dtype=torch.bfloat16)
    result = half.generate([picture()], PROMPT, SMALL)
    assert result.images.dtype == torch.float32
    exact = pipeline.generate([picture()], PROMPT, SMALL)
    assert (result.images - exact.images).abs().mean() < 0.1


def test_a_model_without_the_clip_branch(tiny_folder: Path, tmp_path: Path, tiny_config: ContextAnyoneConfig) -> None:
    for name in ("vae", "text_encoder"):
        shutil.copy(tiny_folder / f"{name}.safetensors", tmp_path)
    model = ContextAnyoneTransformer(replace(tiny_config, image_dim=None))
    save_transformer(tmp_path / "transformer.safetensors", model, dtype=torch.float32)
    result = ContextAnyonePipeline.from_folder(tmp_path).generate([picture()], PROMPT, SMALL)
    assert result.images.shape == (1, 3, 5, 32, 32)


# Files


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "image_encoder"])
def test_a_missing_file_is_named(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_folder, folder)
    (folder / f"{name}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is missing"):
        ContextAnyonePipeline.from_folder(folder)


def test_parts_of_different_models_are_refused(
    tiny_folder: Path, tmp_path: Path, tiny_config: ContextAnyoneConfig
) -> None:
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    for change, message in (
        ({"text_len": 32}, "text_len of the encoder is 64, the transformer needs 32"),
        ({"image_dim": 48}, "image_dim of the encoder is 24, the transformer needs 48"),
        ({"latents_mean": (0.9,) * 16}, "latents_mean of the VAE"),
    ):
        model = ContextAnyoneTransformer(replace(tiny_config, **change))
        save_transformer(tmp_path / "transformer.safetensors", model, dtype=torch.float16)
        with pytest.raises(CheckpointError, match=message):
            ContextAnyonePipeline.from_folder(tmp_path)
    transformer = load_transformer(tiny_folder / "transformer.safetensors")
    whole = ContextAnyonePipeline.from_folder(tiny_folder)
    with pytest.raises(CheckpointError, match="image_dim of the encoder is None"):
        ContextAnyonePipeline(transformer, whole.vae, whole.text_encoder, None)


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("cuda:99", "no_such_device"):
        with pytest.raises(InputError, match=f"{device}.*cannot be used"):
            check_device(device)
    assert check_device("cpu") == torch.device("cpu")


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 80}, "num_frames is 80; Wan needs 4k \\+ 1 frames, such as 77 or 81"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": -3}, "num_frames is -3"),
        ({"num_frames": 5.0}, "num_frames is 5.0"),
        ({"width": 100}, "width is 100; it must be a multiple of 16, such as 96 or 112"),
        ({"width": 3}, "width is 3; it must be a multiple of 16, such as 16\\."),
        ({"height": 0}, "height is 0"),
        ({"height": -16}, "height is -16"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001; at most 1000"),
        ({"steps": True}, "steps is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "below 2\\^64"),
        ({"sampler": "eular"}, "Did you mean euler"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"gap": float("inf")}, "gap is inf"),
        ({"gap": -1.0}, "gap is -1.0"),
        ({"emphasis": -0.5}, "emphasis is -0.5"),
        ({"emphasis": float("nan")}, "emphasis is nan"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_emphasis_zero_and_one_frame_are_possible(pipeline: ContextAnyonePipeline) -> None:
    result = pipeline.generate([picture()], PROMPT, replace(SMALL, emphasis=0.0, num_frames=1))
    assert result.images.shape == (1, 3, 1, 32, 32)
