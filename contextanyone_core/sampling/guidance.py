"""Guidance: which passes through the network a denoising step needs, and how their velocities are combined.

Without a reference always means no reference tokens, no CLIP tokens and no Emphasize-Attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..config import ContextAnyoneConfig
from ..errors import InputError, ShapeError, did_you_mean
from .names import GUIDANCES

if TYPE_CHECKING:
    from torch import Tensor

Interval = tuple[float, float]
"""(low, high) sigmas, both included, between which guidance acts (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""
EVERYWHERE: Interval = (0.0, 1.0)


class Branch(Enum):
    """One pass through the network: with which prompt, with or without the references."""

    PROMPT_REFERENCE = "prompt and reference"
    NEGATIVE_REFERENCE = "negative prompt and reference"
    NEGATIVE = "negative prompt, no reference"

    @property
    def negative(self) -> bool:
        """Whether the pass uses the negative prompt."""
        return self is not Branch.PROMPT_REFERENCE

    @property
    def reference(self) -> bool:
        """Whether the pass is conditioned on the references."""
        return self is not Branch.NEGATIVE


class Guidance(Protocol):
    """Names the passes of a step and combines their velocities.

    Attributes:
        of_clean: whether it combines the clean latents that the passes predict, x - sigma * velocity.
    """

    of_clean: ClassVar[bool]

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """The passes needed at noise level sigma."""

    def combine(self, velocities: Mapping[Branch, Tensor]) -> Tensor:
        """One velocity from those of `branches`.

        Raises:
            ShapeError: they are not all of one shape.
        """


@dataclass(frozen=True)
class CfgGuidance:
    """Two passes: neg + guidance_scale * (prompt with reference - neg); the price of plain Wan.

    At a scale of 1, and outside the interval, one conditional pass.

    Raises:
        InputError: a scale that is negative or not finite, or an interval outside 0 <= low <= high <= 1.
    """

    of_clean: ClassVar[bool] = False
    guidance_scale: float = 5.0
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        _check_scale("guidance_scale", self.guidance_scale)
        check_interval(self.interval)

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """The passes needed at noise level sigma."""
        if self.guidance_scale == 1 or not _inside(sigma, self.interval):
            return (Branch.PROMPT_REFERENCE,)
        return (Branch.PROMPT_REFERENCE, Branch.NEGATIVE)

    def combine(self, velocities: Mapping[Branch, Tensor]) -> Tensor:
        """One velocity from those of `branches`; raises as `Guidance.combine`."""
        _check_one_shape(velocities)
        prompt = velocities[Branch.PROMPT_REFERENCE]
        if len(velocities) == 1:
            return prompt
        negative = velocities[Branch.NEGATIVE]
        return negative + self.guidance_scale * (prompt - negative)


@dataclass(frozen=True)
class DualGuidance:
    """Three passes: neg + reference_scale * (ref,neg - neg) + guidance_scale * (ref,prompt - ref,neg), as Phantom.

    With equal scales (ref,neg) cancels: two passes, as cfg. With both scales at 1, and outside the interval, the
    conditional pass alone.

    Raises:
        InputError: a scale that is negative or not finite, or an interval outside 0 <= low <= high <= 1.
    """

    of_clean: ClassVar[bool] = False
    # Paper: guidance at inference is not stated; the form and the default scales are Phantom's.
    guidance_scale: float = 7.5
    reference_scale: float = 5.0
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        _check_scale("guidance_scale", self.guidance_scale)
        _check_scale("reference_scale", self.reference_scale)
        check_interval(self.interval)

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """The passes needed at noise level sigma."""
        if self.guidance_scale == self.reference_scale == 1 or not _inside(sigma, self.interval):
            return (Branch.PROMPT_REFERENCE,)
        if self.guidance_scale == self.reference_scale:
            return (Branch.PROMPT_REFERENCE, Branch.NEGATIVE)
        return (Branch.PROMPT_REFERENCE, Branch.NEGATIVE_REFERENCE, Branch.NEGATIVE)

    def combine(self, velocities: Mapping[Branch, Tensor]) -> Tensor:
        """One velocity from those of `branches`; raises as `Guidance.combine`."""
        _check_one_shape(velocities)
        prompt = velocities[Branch.PROMPT_REFERENCE]
        if len(velocities) == 1:
            return prompt
        negative = velocities[Branch.NEGATIVE]
        reference = velocities.get(Branch.NEGATIVE_REFERENCE, prompt)  # not there with equal scales: it cancels
        by_reference = self.reference_scale * self._towards(reference, negative)
        return negative + by_reference + self.guidance_scale * self._towards(prompt, reference)

    def _towards(self, prediction: Tensor, before: Tensor) -> Tensor:
        return prediction - before


@dataclass(frozen=True)
class ProjectedDualGuidance(DualGuidance):
    """Dual guidance of clean latents, with each difference projected (APG, arXiv 2410.02416): Bernini's own.

    Of each of the two differences the part along the later prediction counts half, and its norm over channels, rows
    and columns of a latent frame is at most 50 (Bernini, arXiv 2605.22344: `r2v_apg`, and `t2v_apg` without pictures).
    Equal scales do not cancel a pass.
    """

    of_clean: ClassVar[bool] = True
    guidance_scale: float = 4.0
    reference_scale: float = 4.5

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """The passes needed at noise level sigma."""
        if not _inside(sigma, self.interval):
            return (Branch.PROMPT_REFERENCE,)
        return (Branch.PROMPT_REFERENCE, Branch.NEGATIVE_REFERENCE, Branch.NEGATIVE)

    def _towards(self, prediction: Tensor, before: Tensor) -> Tensor:
        """The difference (B, C, T, h, w), bounded in norm, with half of its part along the prediction (APG, section 3).

        In the predictions' float32, for some devices have no float64.
        """
        difference = prediction - before
        bounded = difference * (_LARGEST / _norm(difference).clamp(min=_LARGEST))
        direction = prediction / _norm(prediction).clamp(min=1e-12)
        along = (bounded * direction).sum(dim=_FRAME, keepdim=True) * direction
        return bounded + (_ALONG - 1.0) * along


_FRAME = (-4, -2, -1)  # channels, rows and columns
_ALONG, _LARGEST = 0.5, 50.0


def _norm(latents: Tensor) -> Tensor:
    return latents.square().sum(dim=_FRAME, keepdim=True).sqrt()


def make_guidance(
    name: str,
    config: ContextAnyoneConfig | None = None,
    *,
    guidance_scale: float | None = None,
    reference_scale: float | None = None,
    interval: Interval = EVERYWHERE,
) -> CfgGuidance | DualGuidance:
    """Guidance by name, `cfg` or `dual`; a scale of None is the model's own, or without a config the class's.

    Raises:
        InputError: an unknown name, a bad number, or a reference_scale where `cfg` has none.
    """
    scales = {"guidance_scale": guidance_scale, "reference_scale": reference_scale}
    given = _own_scales(name, config) | {key: value for key, value in scales.items() if value is not None}
    if name == "cfg":
        if reference_scale is not None:
            raise InputError("reference_scale belongs to dual guidance; with cfg, leave it out or choose dual.")
        return CfgGuidance(**given, interval=interval)
    if name == "dual":
        dual = ProjectedDualGuidance if config is not None and config.projected_guidance else DualGuidance
        return dual(**given, interval=interval)
    raise InputError(
        f"There is no guidance {name!r}; use one of {', '.join(GUIDANCES)}.{did_you_mean(name, GUIDANCES)}"
    )


def _own_scales(name: str, config: ContextAnyoneConfig | None) -> dict[str, float]:
    if config is None:
        return {}
    if name == "cfg":
        return {"guidance_scale": config.cfg_scale}
    return dict(zip(("guidance_scale", "reference_scale"), config.dual_scales, strict=True))


def _inside(sigma: float, interval: Interval) -> bool:
    return interval[0] <= sigma <= interval[1]


def _check_one_shape(velocities: Mapping[Branch, Tensor]) -> None:
    shapes = {branch.value: tuple(velocity.shape) for branch, velocity in velocities.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"The passes of a step gave velocities of different shapes: {shapes}; they must be of one.")


def _check_scale(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{name} is {value}; it must be a finite number of at least 0, such as 5.")


def check_interval(interval: Interval) -> None:
    """Refuse what is no interval of noise levels.

    Raises:
        InputError: a bound outside 0 <= low <= high <= 1.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"The guidance interval is {low:g} to {high:g}; two noise levels (sigmas) are needed, the lower one first, "
            "from 0 (clean) to 1 (noise)."
        )
