"""Guidance: the formulas, the passes they need, and their interval."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.generation.pipeline import Conditions, GenerationSettings, LatentSampler
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.sampling.guidance import Branch, CfgGuidance, DualGuidance, ProjectedDualGuidance, make_guidance
from contextanyone_core.sampling.reference_modes import SeparateStream

SCALE = st.floats(0, 20)


def velocities(guidance, seed=0, sigma=0.5):
    random = torch.Generator().manual_seed(seed)
    return {
        branch: torch.randn(1, 16, 2, 2, 2, generator=random, dtype=torch.float64)
        for branch in guidance.branches(sigma)
    }


@settings(max_examples=20, deadline=None)
@given(SCALE, st.integers(0, 99))
def test_cfg_formula(scale, seed):
    guidance = CfgGuidance(scale)
    given_ = velocities(guidance, seed)
    negative = given_.get(Branch.NEGATIVE, 0)
    expected = negative + scale * (given_[Branch.PROMPT_REFERENCE] - negative)
    assert torch.allclose(guidance.combine(given_), expected)


@settings(max_examples=20, deadline=None)
@given(SCALE, SCALE, st.integers(0, 99))
def test_dual_formula(scale, reference_scale, seed):
    guidance = DualGuidance(scale, reference_scale)
    given_ = velocities(guidance, seed)
    if scale == reference_scale:  # the test below
        return
    full, seen, unseen = (given_[branch] for branch in Branch)
    expected = unseen + reference_scale * (seen - unseen) + scale * (full - seen)
    assert torch.allclose(guidance.combine(given_), expected)


@settings(max_examples=10, deadline=None)
@given(SCALE, st.integers(0, 99))
def test_dual_with_equal_scales_is_cfg(scale, seed):
    dual, cfg = DualGuidance(scale, scale), CfgGuidance(scale)
    assert dual.branches(0.5) == cfg.branches(0.5)
    given_ = velocities(dual, seed)
    assert torch.equal(dual.combine(given_), cfg.combine(given_))


def test_passes_say_what_they_read():
    assert CfgGuidance().branches(1.0) == (Branch.PROMPT_REFERENCE, Branch.NEGATIVE)
    assert DualGuidance().branches(1.0) == (Branch.PROMPT_REFERENCE, Branch.NEGATIVE_REFERENCE, Branch.NEGATIVE)
    assert [(branch.negative, branch.reference) for branch in Branch] == [(False, True), (True, True), (True, False)]


@pytest.mark.parametrize(
    "guidance",
    [CfgGuidance(5.0, (0.2, 0.8)), DualGuidance(7.5, 5.0, (0.2, 0.8)), ProjectedDualGuidance(4.0, 4.0, (0.2, 0.8))],
)
def test_outside_the_interval_the_conditional_pass_is_alone(guidance):
    for sigma in (0.0, 0.1999, 0.81, 1.0):
        given_ = velocities(guidance, sigma=sigma)
        assert given_.keys() == {Branch.PROMPT_REFERENCE}
        assert torch.equal(guidance.combine(given_), given_[Branch.PROMPT_REFERENCE])
    for sigma in (0.2, 0.5, 0.8):
        assert len(guidance.branches(sigma)) > 1


def test_projected_guidance_halves_what_lies_along_and_bounds_the_norm_of_a_frame():
    guidance = ProjectedDualGuidance(2.0, 3.0)
    shape, flat = (1, 16, 2, 4, 4), torch.zeros(1, 16, 2, 4, 4)
    along, across = flat.clone(), flat.clone()
    along[:, 0], across[:, 1] = 1.0, 1.0  # orthogonal in every frame
    reference = 5.0 * along
    given_ = {Branch.NEGATIVE: 4.0 * along, Branch.NEGATIVE_REFERENCE: reference, Branch.PROMPT_REFERENCE: reference}
    assert torch.allclose(guidance.combine(given_), (4.0 + 3.0 * 0.5) * along), "a difference along the prediction"
    negative = reference - 0.1 * across
    given_[Branch.NEGATIVE] = negative
    direction = reference / reference[:, :, 0].square().sum().sqrt()
    lost = 0.5 * (0.1 * across * direction).sum((1, 3, 4), keepdim=True) * direction
    assert torch.allclose(guidance.combine(given_), negative + 3.0 * (0.1 * across - lost), atol=1e-6)
    given_[Branch.NEGATIVE] = reference - 100.0 * across  # 100 * sqrt(16) = 400 in a frame, counted as 50
    found = guidance.combine(given_) - given_[Branch.NEGATIVE]
    assert torch.allclose(found.square().sum((1, 3, 4)).sqrt(), torch.full((1, 2), 150.0))
    same = dict.fromkeys(Branch, torch.randn(shape))
    assert torch.equal(guidance.combine(same), same[Branch.NEGATIVE])


def test_scales_of_one_need_one_pass():
    assert CfgGuidance(1.0).branches(0.5) == DualGuidance(1.0, 1.0).branches(0.5) == (Branch.PROMPT_REFERENCE,)


def test_guidance_by_name():
    assert make_guidance("cfg", guidance_scale=3.0) == CfgGuidance(3.0)
    assert make_guidance("dual", reference_scale=2.0, interval=(0.1, 0.9)) == DualGuidance(7.5, 2.0, (0.1, 0.9))
    own = replace(ContextAnyoneConfig.tiny(), cfg_scale=2.0, dual_scales=(3.0, 4.0))
    assert make_guidance("cfg", own) == CfgGuidance(2.0)
    assert make_guidance("dual", own, guidance_scale=6.0) == DualGuidance(6.0, 4.0)
    with pytest.raises(InputError, match=r"use one of cfg, dual\. Did you mean dual"):
        make_guidance("duel")
    with pytest.raises(InputError, match="belongs to dual"):
        make_guidance("cfg", reference_scale=2.0)


@pytest.mark.parametrize(
    "guidance", [CfgGuidance(3.0), DualGuidance(3.0, 2.0), DualGuidance(3.0, 3.0), ProjectedDualGuidance()]
)
@pytest.mark.parametrize("batch", [2, 3])
def test_passes_of_different_batches_are_refused(guidance, batch):
    """One of 1 beside one of 2 would be repeated without a word."""
    given = {branch: torch.zeros(1, 16, 2, 2, 2) for branch in guidance.branches(0.5)}
    with pytest.raises(ShapeError, match="different shapes"):
        guidance.combine(given | {Branch.NEGATIVE: torch.zeros(batch, 16, 2, 2, 2)})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_scales_are_refused(bad):
    with pytest.raises(InputError, match="guidance_scale"):
        CfgGuidance(bad)
    with pytest.raises(InputError, match="reference_scale"):
        DualGuidance(5.0, bad)


class Counted(SeparateStream):
    """A reference mode that notes the prompts of its passes."""

    passes: ClassVar[list[float]] = []

    def velocity(self, latents, timesteps, text_embeds, **options):
        self.passes.append(float(timesteps[0]) / 1000)
        return super().velocity(latents, timesteps, text_embeds, **options)


@pytest.fixture
def sample():
    """Latents and the noise level of every pass of a run of a tiny model, by guidance."""
    config = ContextAnyoneConfig.tiny()
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(config).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    text, negative, first = torch.randn(3, 1, config.text_len, config.text_dim)
    conditions = Conditions(text, negative, ReferenceInputs([torch.randn(1, 16, 1, 4, 4)], first, []))
    sampler = LatentSampler(model, Counted)

    def run(guidance):
        asked = GenerationSettings(num_frames=5, width=32, height=32, steps=5, shift=1.0, guidance=guidance)
        Counted.passes.clear()
        latents = sampler.sample_latents(conditions, asked, sampler.noise([0], asked))
        return latents, list(Counted.passes)

    return run


@pytest.mark.parametrize(("kind", "guided"), [(CfgGuidance, 2), (DualGuidance, 3)])
def test_a_run_is_guided_inside_of_the_interval_only(sample, kind, guided):
    """Sigmas 1, 0.8, 0.6, 0.4, 0.2: the whole interval is no interval, bit for bit; outside a step is one pass."""
    plain, passes = sample(kind())
    whole, same = sample(kind(interval=(0.0, 1.0)))
    assert torch.equal(whole, plain)
    assert passes == same
    assert len(passes) == 5 * guided
    part, fewer = sample(kind(interval=(0.3, 0.7)))
    assert [round(sigma, 4) for sigma in fewer] == [1.0, 0.8, *[0.6] * guided, *[0.4] * guided, 0.2]
    assert not torch.equal(part, plain)
    alone, single = sample(kind(interval=(0.5, 0.5)))
    assert len(single) == 5
    assert torch.equal(alone, sample(CfgGuidance(1.0))[0])


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_bad_intervals_are_refused(interval):
    for kind in (CfgGuidance, DualGuidance):
        with pytest.raises(InputError, match="interval"):
            kind(interval=interval)
