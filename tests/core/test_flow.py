"""Flow matching: the path, its velocity, and the sigmas of sampling and training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contextanyone_core.errors import InputError, ShapeError
from contextanyone_core.sampling.flow import (
    add_noise,
    sample_sigmas,
    shift_sigmas,
    sigma_schedule,
    velocity_target,
)

SHIFT = st.floats(0.1, 20)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_the_velocity_leads_back_to_the_clean_sample(sigma, seed):
    clean, noise = torch.randn(2, 2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noisy = add_noise(clean, noise, sigma)
    assert torch.allclose(noisy - sigma * velocity_target(clean, noise), clean)


def test_sigma_one_is_noise_and_zero_is_clean_per_sample():
    clean, noise = torch.randn(2, 2, 16, 1, 2, 2)
    noisy = add_noise(clean, noise, torch.tensor([1.0, 0.0]))
    assert torch.equal(noisy[0], noise[0])
    assert torch.equal(noisy[1], clean[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), SHIFT)
def test_a_schedule_falls_from_one_to_zero(steps, shift):
    sigmas = sigma_schedule(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@given(SHIFT)
@settings(max_examples=20, deadline=None)
def test_shifting_back_undoes_a_shift(shift):
    sigmas = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(shift_sigmas(shift_sigmas(sigmas, shift), 1 / shift), sigmas)


def test_pinned_schedule():
    assert torch.equal(sigma_schedule(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    assert sigma_schedule(2, 5.0)[1].item() == pytest.approx(5 / 6)


def test_training_sigmas():
    def draw(**changes):
        return sample_sigmas(20_000, generator=torch.Generator().manual_seed(3), **({"shift": 1.0} | changes))

    assert torch.equal(draw(), draw())
    assert ((draw() > 0) & (draw() < 1)).all()
    assert draw(uniform=0.0).logit().mean().abs() < 0.05
    assert draw(uniform=0.0).logit().std() == pytest.approx(1, abs=0.05)
    assert draw(shift=5.0).mean() > draw(shift=1.0).mean() + 0.2
    assert (draw(shift=5.0, uniform=0.5) < 0.1).float().mean() == pytest.approx(0.05, abs=0.01)
    assert draw(uniform=1.0, shift=5.0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("kind", "below"), [("logit_normal", 0.1359), ("uniform", 0.25), ("cosmap", 0.2048)])
def test_training_sigmas_by_name(kind, below):
    """Shares below a quarter, by each one's own formula."""
    drawn = sample_sigmas(40_000, shift=1.0, uniform=0.0, distribution=kind, generator=torch.Generator().manual_seed(3))
    assert (drawn < 0.25).float().mean() == pytest.approx(below, abs=0.01)
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)


def test_the_usual_draws_are_what_they_were():
    drawn = sample_sigmas(3, shift=2.0, uniform=0.2, generator=torch.Generator().manual_seed(0))
    bell = torch.randn(3, dtype=torch.float64, generator=(same := torch.Generator().manual_seed(0))).sigmoid()
    flat, chance = (torch.rand(3, dtype=torch.float64, generator=same) for _ in range(2))
    assert torch.equal(drawn, torch.where(chance < 0.2, flat, 2 * bell / (1 + bell)).float())


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_shifts_are_refused(shift):
    with pytest.raises(InputError, match="shift is"):
        sigma_schedule(4, shift)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
def test_bad_steps_are_refused(steps):
    with pytest.raises(InputError, match="steps is"):
        sigma_schedule(steps, 3.0)


def test_bad_sampling_numbers_are_refused():
    with pytest.raises(InputError, match="batch"):
        sample_sigmas(0, shift=1.0)
    with pytest.raises(InputError, match="uniform"):
        sample_sigmas(2, shift=1.0, uniform=1.5)
    with pytest.raises(InputError, match="distribution is bell; it must be one of logit_normal"):
        sample_sigmas(2, shift=1.0, distribution="bell")


def test_shapes_must_match():
    clean = torch.zeros(2, 16, 1, 2, 2)
    with pytest.raises(ShapeError, match="noise"):
        add_noise(clean, clean[:1], 0.5)
    with pytest.raises(ShapeError, match="sigma"):
        add_noise(clean, clean, torch.zeros(3))
    with pytest.raises(ShapeError, match="noise"):
        velocity_target(clean, clean[:, :3])
