"""RefAlign and Bernini: public models with Wan T2V's tensors, told by their names, each against an independent loop."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.reference import own_size_picture
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import InContextReferences, ReferenceInputs
from contextanyone_core.model.rope import apply_rotary, grid_positions, in_context_positions, rotary_table
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.flow import sigma_schedule
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance, ProjectedDualGuidance, make_guidance
from contextanyone_core.sampling.reference_modes import InContext, TextlessConcatenation
from contextanyone_core.weights.name_tables import rename, transformer_table

PROMPT = TwoStagePrompt("A woman with red hair.", "The same person is waving.")
SETTINGS = GenerationSettings(num_frames=5, width=32, height=48, steps=4, seed=3, sampler="euler")


@pytest.fixture(scope="module")
def refalign(wan_folder: Path) -> ContextAnyonePipeline:
    return ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["refalign"])


@pytest.fixture(scope="module")
def bernini(wan_folder: Path) -> ContextAnyonePipeline:
    """With what `own_config` gives a full-size file, but for its shift."""
    pipeline = ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["bernini"])
    pipeline.config = replace(pipeline.config, dual_scales=(4.0, 4.5), projected_guidance=True)
    return pipeline


def theirs(model: ContextAnyoneTransformer) -> WanTransformer3DModel:
    config = model.config
    other = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
    )
    other.load_state_dict(rename(model.state_dict(), transformer_table(config.num_layers)))
    return other.eval().requires_grad_(False)


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, *size, generator=generator) * 2 - 1 for size in ((40, 24), (30, 50))]


def latents_of(
    pipeline: ContextAnyonePipeline, shown: list[torch.Tensor], settings: GenerationSettings = SETTINGS
) -> torch.Tensor:
    """Latents of a run, without the time that decoding takes."""
    encoded = pipeline.encode_references(shown, settings.size)
    conditions = pipeline.conditions(encoded, PROMPT, negative="night")
    return pipeline.sample_latents(conditions, settings, pipeline.noise([3], settings))


def turned(grid: tuple[int, int, int], number: int, head_dim: int) -> torch.Tensor:
    """Bernini's rotations as complex numbers (tokens, head_dim / 2): of a grid from 0, times that of its number."""
    side = 2 * (head_dim // 6)
    parts = []
    for axis, width in enumerate((head_dim - 2 * side, side, side)):
        speed = 1e4 ** -(torch.arange(0, width, 2).double() / width)
        angle = torch.outer(torch.arange(grid[axis]).double(), speed)
        shape = [1, 1, 1, len(speed)]
        shape[axis] = grid[axis]
        parts.append(angle.view(shape).expand(*grid, len(speed)))
    angles = torch.cat(parts, dim=-1).flatten(0, 2)
    own = number * 1e4 ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    return torch.polar(torch.ones_like(angles), angles) * torch.polar(torch.ones_like(own), own)


def bernini_forward(
    model: WanTransformer3DModel,
    x: torch.Tensor,
    references: list[torch.Tensor],
    time: torch.Tensor,
    text: torch.Tensor,
) -> torch.Tensor:
    """One pass on diffusers' layers: all tokens in one stream, each picture with its own grid and number."""
    inputs = [x, *(item.expand(len(x), -1, -1, -1, -1) for item in references)]
    patches = [model.patch_embedding(item) for item in inputs]
    grids = [tuple(item.shape[2:]) for item in patches]
    tokens = torch.cat([item.flatten(2).transpose(1, 2) for item in patches], dim=1)
    head_dim = model.config.attention_head_dim
    rotations = torch.cat([turned(grid, number, head_dim) for number, grid in enumerate(grids)])
    table = tuple(part.float().repeat_interleave(2, 1)[None, :, None] for part in (rotations.real, rotations.imag))
    temb, projected, words, _ = model.condition_embedder(time, text, None)
    for block in model.blocks:
        tokens = block(tokens, words, projected.unflatten(1, (6, -1)), table)
    shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    tokens = model.proj_out(model.norm_out(tokens.float()) * (1 + scale) + shift)
    t, h, w = grids[0]
    video = tokens[:, : t * h * w].unflatten(1, (t, h, w)).unflatten(-1, (1, 2, 2, -1))
    return video.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(x), -1, t, 2 * h, 2 * w)


def test_a_number_turns_the_whole_head_once_more() -> None:
    head_dim, grid = 24, (2, 3, 2)
    x = torch.randn(1, math.prod(grid), 2, head_dim)
    expected = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turned(grid, 3, head_dim)[None, :, None]
    found = apply_rotary(x, rotary_table(in_context_positions(3, *grid), head_dim))
    assert torch.allclose(found.double(), torch.view_as_real(expected).flatten(-2), atol=1e-5)
    plain = rotary_table(grid_positions(*grid), head_dim)
    assert all(map(torch.equal, plain, rotary_table(in_context_positions(0, *grid), head_dim)))
    with pytest.raises(ShapeError, match=r"needed is \(tokens, 3\) or \(tokens, 4\)"):
        rotary_table(torch.zeros(4, 5), head_dim)


def test_berninis_forward_is_the_one_stream_of_an_independent_loop(bernini: ContextAnyonePipeline) -> None:
    config = bernini.config
    latents, text = torch.randn(2, 16, 3, 6, 4), torch.randn(2, config.text_len, config.text_dim)
    references = [torch.randn(1, 16, 1, 8, 2), torch.randn(2, 16, 1, 4, 6)]
    mode = InContext(bernini.transformer, ReferenceInputs(references, text, []))
    time = torch.tensor([999.0, 12.5])
    expected = bernini_forward(theirs(bernini.transformer), latents, references, time, text)
    found = mode.velocity(latents, time, text, with_reference=True)
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1
    plain = bernini_forward(theirs(bernini.transformer), latents, [], time, text)
    assert torch.allclose(mode.velocity(latents, time, text, with_reference=False), plain, atol=1e-4)
    other = InContext(bernini.transformer, ReferenceInputs(references[::-1], text, []))
    swapped = other.velocity(latents, time, text, with_reference=True)
    assert float((swapped - expected).detach().abs().max()) > 0.01, "the order is the number"


def projected(difference: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Bernini's rule for one difference of clean latents, frame by frame."""
    frames = []
    for one, along in zip(difference.unbind(2), prediction.unbind(2), strict=True):
        flat, unit = one.flatten(1).double(), torch.nn.functional.normalize(along.flatten(1).double(), dim=1)
        flat = flat * torch.clamp(50.0 / flat.norm(dim=1, keepdim=True), max=1.0)
        part = (flat * unit).sum(1, keepdim=True) * unit
        frames.append((flat - part + 0.5 * part).view_as(one))
    return torch.stack(frames, dim=2).float()


def berninis_run(bernini: ContextAnyonePipeline, shown: list[torch.Tensor], guidance: str) -> torch.Tensor:
    """Pictures at their own size, the order of the pictures as their numbers: latents of an independent loop."""
    model, text_encoder = theirs(bernini.transformer), bernini.text_encoder
    references = [bernini.vae.encode(own_size_picture(item)[:, :, None]) for item in shown]
    prompt, negative = (text_encoder.encode([text]) for text in (PROMPT.video_text, "night"))
    x = bernini.noise([3], SETTINGS)
    for sigma, after in pairwise(sigma_schedule(4, bernini.config.shift)):
        passes = (([], negative), (references, negative), (references, prompt))
        none, image, both = (bernini_forward(model, x, given, 1000 * sigma[None], text) for given, text in passes)
        if guidance == "cfg":  # as ComfyUI runs it: two passes with the pictures in both
            velocity = image + 5.0 * (both - image)
        else:
            none, image, both = (x - sigma * item for item in (none, image, both))
            clean = none + 4.5 * projected(image - none, image) + 4.0 * projected(both - image, both)
            velocity = (x - clean) / sigma
        x = x + (after - sigma) * velocity
    return x


@pytest.mark.parametrize("guidance", ["dual", "cfg"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_run_of_bernini_equals_its_loop(bernini: ContextAnyonePipeline, guidance: str, number: int) -> None:
    shown = pictures()[:number]
    assert [own_size_picture(item).shape[-2:] for item in shown] == [(32, 32), (32, 48)][:number]
    settings = replace(SETTINGS, guidance=make_guidance(guidance, bernini.config))
    found = latents_of(bernini, shown, settings=settings)
    expected = berninis_run(bernini, shown, guidance)
    assert torch.allclose(found, expected, atol=2e-3, rtol=1e-3)
    if guidance == "dual":
        assert torch.equal(found, latents_of(bernini, shown)), "its own guidance"


def test_a_run_of_refalign_equals_its_loop(refalign: ContextAnyonePipeline) -> None:
    """References behind the video that never read the text, three passes of 5 and 7.5, zeroed ones in the last."""
    found = latents_of(refalign, pictures())
    model, text_encoder = theirs(refalign.transformer), refalign.text_encoder
    tokens = 2 * 3 * 2  # of the video: its DiTBlock adds cross-attention to them alone
    for block in model.blocks:
        block.attn2.register_forward_hook(
            lambda _module, _inputs, read: torch.cat((read[:, :tokens], torch.zeros_like(read[:, tokens:])), dim=1)
        )
    references = torch.cat([refalign.dual_encoder.latents(item, SETTINGS.size) for item in pictures()], dim=2)
    prompt, negative = (text_encoder.encode([text]) for text in (PROMPT.video_text, "night"))
    sigmas = sigma_schedule(4, refalign.config.shift)
    x = refalign.noise([3], SETTINGS)
    for sigma, after in pairwise(sigmas):
        shown, blank = (torch.cat([x, item], dim=2) for item in (references, torch.zeros_like(references)))
        it, i, neg = (
            model(given, 1000 * sigma[None], text, return_dict=False)[0][:, :, :2]
            for given, text in ((shown, prompt), (shown, negative), (blank, negative))
        )
        x = x + (after - sigma) * (neg + 5.0 * (i - neg) + 7.5 * (it - i))
    assert torch.allclose(found, x, atol=1e-3, rtol=1e-4)
    assert refalign.reference_mode is TextlessConcatenation


def test_refalign_is_phantom_but_for_what_its_references_read(
    wan_folder: Path, refalign: ContextAnyonePipeline
) -> None:
    phantom = ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["phantom"])
    assert torch.equal(latents_of(phantom, []), latents_of(refalign, []))
    assert float((latents_of(phantom, pictures()) - latents_of(refalign, pictures())).std()) > 0.01


def test_without_a_picture_bernini_is_plain_wan(wan_folder: Path, bernini: ContextAnyonePipeline) -> None:
    wan = ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["wan"])
    settings = replace(SETTINGS, guidance=CfgGuidance(5.0))
    assert torch.equal(latents_of(wan, [], settings), latents_of(bernini, [], settings))


def test_what_bernini_does_not_take_is_refused(bernini: ContextAnyonePipeline) -> None:
    config = bernini.config
    text = torch.zeros(2, config.text_len, config.text_dim)
    mode = InContext(bernini.transformer, ReferenceInputs([torch.zeros(1, 16, 1, 4, 4)], text, []))
    latents, time = torch.zeros(2, 16, 1, 4, 4), torch.zeros(2)
    with pytest.raises(InputError, match="takes no pose and no start frame"):
        mode.velocity(latents, time, text, with_reference=True, condition=VideoCondition())
    for shape, words in (((3, 16, 1, 4, 4), "a batch of 3"), ((1, 16, 1, 4, 5), "multiples of")):
        with pytest.raises(ShapeError, match=words):
            bernini.transformer(latents, time, text, references=InContextReferences([torch.zeros(*shape)]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 500), (848, 416)), ((100, 40), (96, 32)), ((8, 9), (16, 16)), ((480, 832), (480, 832))],
)
def test_a_picture_of_its_own_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert own_size_picture(torch.zeros(1, 3, *size)).shape == (1, 3, *expected)


def test_the_schedule_of_a_full_size_file_is_berninis_own() -> None:
    wan = replace(ContextAnyoneConfig.wan_1_3b(), image_dim=None, emphasize=False)
    assert wan.shift == 5
    assert {name: spec.own_config(wan).shift for name, spec in MODELS.items() if name != "vace"} == {
        "contextanyone": 5.0,
        "wan": 5.0,
        "phantom": 5.0,
        "refalign": 5.0,
        "bernini": 3.0,
    }
    own = MODELS["bernini"].own_config(wan)
    assert make_guidance("dual", own) == ProjectedDualGuidance(4.0, 4.5)
    assert make_guidance("dual", MODELS["refalign"].own_config(wan)) == DualGuidance(7.5, 5.0)
    small = replace(wan, text_len=128, shift=2.0)
    assert MODELS["bernini"].own_config(small) == small  # a small one states its own


class _Written:
    """A text encoder that keeps what it is given."""

    def __init__(self, text_dim: int) -> None:
        self.texts: list[str] = []
        self._text_dim = text_dim

    def count_tokens(self, text: str) -> int:
        return len(text.split()) + 1

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.texts += texts
        return torch.zeros(len(texts), 512, self._text_dim)


def test_a_full_size_bernini_is_told_its_task_before_the_prompt(
    bernini: ContextAnyonePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its renderer was trained on the system prompt of the task, without a space between (its `data.py`)."""
    encoder = _Written(bernini.config.text_dim)
    monkeypatch.setattr(bernini, "text_encoder", encoder)
    monkeypatch.setattr(bernini, "config", replace(bernini.config, text_len=512))
    shown = bernini.encode_references(pictures(), SETTINGS.size)
    for references, task in ((shown, "subject-to-video"), ([], "text-to-video")):
        bernini.conditions(references, PROMPT, negative="night")
        asked, negative, _ = encoder.texts[-3:]
        assert asked == f"You are a helpful assistant specialized in {task} generation.{PROMPT.video_text}"
        assert negative == "night"
    words = " ".join(["word"] * 503)  # with 10 of the task's own and the end they are more than 512
    with pytest.raises(InputError, match="has 513 tokens"):
        bernini.check_prompt(TwoStagePrompt("", words), "")
    bernini.check_prompt(TwoStagePrompt("", " ".join(["word"] * 500)), "")
