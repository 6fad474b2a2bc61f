"""Flow matching: noising, velocity, sigma schedules (Wan 2.1).

sigma 1 is noise, 0 is clean; noisy = (1 - sigma) * clean + sigma * noise; velocity = noise - clean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..shapes import check_same_shape

SigmaDistribution = Literal["logit_normal", "uniform", "cosmap"]


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """(1 - sigma) * clean + sigma * noise.

    Args:
        clean, noise: (B, ...), the same shape.
        sigma: one number, or (B,) with one per sample, in [0, 1].

    Raises:
        ShapeError: shapes differ, or sigma has another batch.
    """
    check_same_shape("noise", noise.shape, clean.shape)
    sigma = _broadcastable(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What the network must predict: noise - clean.

    Raises:
        ShapeError: shapes differ.
    """
    check_same_shape("noise", noise.shape, clean.shape)
    return noise - clean


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """shift * s / (1 + (shift - 1) * s): moves sigmas towards noise for shift > 1; 0 and 1 stay (SD3; Wan 2.1).

    Raises:
        InputError: shift is not a finite number above 0.
    """
    if not math.isfinite(shift) or shift <= 0:
        raise InputError(f"shift is {shift}; it must be a finite number above 0, such as 3 or 5.")
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sigma_schedule(steps: int, shift: float) -> Tensor:
    """The sigmas of every sampler: the shift applied to linspace(1, 0), computed in float64.

    Returns:
        float32 (steps + 1,), from exactly 1 down to exactly 0.

    Raises:
        InputError: steps is not a whole number of at least 1, or shift not a finite number above 0.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps is {steps}; it must be a whole number of at least 1, such as 20.")
    return shift_sigmas(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def sample_sigmas(
    batch: int,
    *,
    shift: float,
    uniform: float = 0.1,
    distribution: SigmaDistribution = "logit_normal",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random noise levels for training: from a named distribution and shifted, but for a fraction of uniform ones.

    The uniform ones are not shifted; without them a high shift hardly ever trains the cleanest levels.

    Args:
        batch: how many.
        shift: as in `shift_sigmas`.
        uniform: probability of a uniform sample, 0 to 1.
        distribution: unshifted: `logit_normal` (0, 1), `uniform`, `cosmap` of density 2 / (pi (1 - 2 x + 2 x^2)).
        generator: source of randomness, on the CPU.

    Returns:
        float32 (batch,) on the CPU, in (0, 1).

    Raises:
        InputError: a number outside its range, or a name that is none of these.
    """
    # Paper: how noise levels are sampled in training is not stated; logit-normal is SD3's choice, cosmap another there.
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1.")
    if not 0 <= uniform <= 1:
        raise InputError(f"uniform is {uniform}; it must lie between 0 and 1.")
    if distribution not in _QUANTILES:
        raise InputError(f"distribution is {distribution}; it must be one of {', '.join(_QUANTILES)}.")
    draw = torch.randn if distribution == "logit_normal" else torch.rand
    named = _QUANTILES[distribution](draw(batch, dtype=torch.float64, generator=generator))
    shifted = shift_sigmas(named, shift)
    flat = torch.rand(batch, dtype=torch.float64, generator=generator)
    chosen = torch.rand(batch, dtype=torch.float64, generator=generator) < uniform
    return torch.where(chosen, flat, shifted).clamp(1e-4, 1 - 1e-4).float()


def _cosmap(x: Tensor) -> Tensor:
    """The quantile function of cosmap: the level t / (1 + t), t = tan(pi x / 2), below which a fraction x lies."""
    tangent = (0.5 * math.pi * x).tan()
    return tangent / (1 + tangent)


_QUANTILES: dict[str, Callable[[Tensor], Tensor]] = {
    "logit_normal": torch.sigmoid,  # takes a normal sample, the others a uniform one
    "uniform": lambda x: x,
    "cosmap": _cosmap,
}


def _broadcastable(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """One number, or (B,) as (B, 1, ...) for a tensor (B, ...)."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma
    if sigma.shape != like.shape[:1]:
        raise ShapeError(f"sigma has shape {tuple(sigma.shape)}; needed is one number or ({like.shape[0]},).")
    return sigma.view(-1, *[1] * (like.ndim - 1)).to(like.device)
