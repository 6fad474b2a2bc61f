"""What one generation is asked for: size, steps, seed, sampler and guidance, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..sampling.guidance import Guidance
from ..sampling.names import check_sampler_name
from ..shapes import VideoShape, check_frames, check_side, require_number, require_whole
from .conditions import WHOLE_RUN, check_window

_MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of a generation, apart from prompts and references.

    Attributes:
        num_frames: 4k + 1.
        width, height: pixels, multiples of 16.
        steps: denoising steps, at most 1000.
        seed: of the noise; the same seed gives the same video.
        sampler: one of `sampling.names.SAMPLERS`.
        shift: shift of the sigma schedule; None takes the model's.
        guidance: passes of a step and their combination; None is the model's default guidance at its default scales.
        emphasis: factor of Emphasize-Attention, 1 as trained, 0 without.
        gap: latent frames between references and video; None takes the model's.
        pose_strength: factor of the pose's latents, 1 as trained, 0 without.
        pose_window: (start, end), shares of the steps between which the pose acts; by default all of them.

    Raises:
        InputError: a number is out of range, or the sampler is unknown.
    """

    num_frames: int = 17
    width: int = 128
    height: int = 128
    steps: int = 20
    seed: int = 0
    sampler: str = "unipc"
    shift: float | None = None
    guidance: Guidance | None = None
    emphasis: float = 1.0
    gap: float | None = None
    pose_strength: float = 1.0
    pose_window: tuple[float, float] = WHOLE_RUN

    def __post_init__(self) -> None:
        check_frames(self.num_frames)
        check_side(self.width, "width")
        check_side(self.height, "height")
        require_whole("steps", self.steps, 1)
        require_whole("seed", self.seed, 0)
        if self.steps > _MAX_STEPS:
            raise InputError(f"steps is {self.steps}; at most {_MAX_STEPS} are possible, and 20 to 50 are usual.")
        if self.seed >= 2**64:
            raise InputError(f"seed is {self.seed}; it must be below 2^64.")
        check_sampler_name(self.sampler)
        require_number("emphasis", self.emphasis, zero=True)
        require_number("pose_strength", self.pose_strength, zero=True)
        check_window(self.pose_window)
        for name in ("shift", "gap"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), zero=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def shape(self) -> VideoShape:
        """Frames, height and width together."""
        return VideoShape(self.num_frames, self.height, self.width)
