"""Sizes of a video in pixels, latents and tokens, and the constraints of Wan 2.1's VAE and patch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .config import ContextAnyoneConfig
from .errors import InputError, ShapeError

FRAME_STEP = 4  # VAE: 4 frames per latent frame after the first
SIDE_STEP = 16  # VAE: 8 pixels per latent; transformer: 2 latents per token
LONG_EDGE = 848  # pixels that a reference of its own size has at most on its long side (Bernini's, in ComfyUI)


class VideoShape(NamedTuple):
    """The size of a video in pixels.

    Attributes:
        num_frames: 4k + 1.
        height, width: multiples of 16.
    """

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"

    @property
    def picture(self) -> VideoShape:
        """A single frame of this size, such as a reference."""
        return self._replace(num_frames=1)

    def latents(self, config: ContextAnyoneConfig) -> tuple[int, int, int]:
        """(t, h, w) of the latents: t = 1 + (T - 1) / 4, h = H / 8, w = W / 8."""
        frames, rows, columns = config.vae_stride
        return 1 + (self.num_frames - 1) // frames, self.height // rows, self.width // columns

    def latents_shape(self, config: ContextAnyoneConfig, batch: int = 1) -> tuple[int, int, int, int, int]:
        """(B, C, t, h, w) of a batch's latents."""
        return (batch, config.in_dim, *self.latents(config))

    def token_count(self, config: ContextAnyoneConfig) -> int:
        """Number of the transformer's tokens."""
        return math.prod(side // patch for side, patch in zip(self.latents(config), config.patch_size, strict=True))


def usable_frames(available: int) -> int:
    """The largest number of the form 4k + 1 that is not above `available`."""
    return available - (available - 1) % FRAME_STEP


def counted_frames(number: int) -> str:
    """A number of frames in words."""
    return f"{number} frame{'' if number == 1 else 's'}"


def frames_mistake(frames: int) -> str | None:
    """The error for a number of frames that is not 4k + 1, naming the two nearest valid ones; None if it is valid."""
    if frames % FRAME_STEP == 1:
        return None
    below = usable_frames(frames)
    return f"Wan needs 4k + 1 frames, such as {below} or {below + FRAME_STEP}"


def side_mistake(pixels: int) -> str | None:
    """The error for a side that is not a multiple of 16, naming the two nearest ones; None if it is valid."""
    if pixels % SIDE_STEP == 0 and pixels > 0:
        return None
    below = pixels - pixels % SIDE_STEP
    near = [str(side) for side in (below, below + SIDE_STEP) if side > 0]
    return f"it must be a multiple of {SIDE_STEP}, such as {' or '.join(near)}"


def check_frames(count: object, name: str = "num_frames") -> None:
    """Check that a number of frames is 4k + 1.

    Raises:
        InputError: it is not; the message names the two nearest valid numbers.
    """
    frames = require_whole(name, count, 1)
    if mistake := frames_mistake(frames):
        raise InputError(f"{name} is {frames}; {mistake}.")


def check_side(side: object, name: str) -> None:
    """Check that a width or height is a multiple of 16.

    Raises:
        InputError: it is not; the message names the multiples below and above.
    """
    pixels = require_whole(name, side, 1)
    if mistake := side_mistake(pixels):
        raise InputError(f"{name} is {pixels}; {mistake}.")


def check_same_shape(name: str, given: Sequence[int], needed: Sequence[int]) -> None:
    """Check that a tensor has the shape of another one.

    Raises:
        ShapeError: it has not; the message names both shapes.
    """
    if tuple(given) != tuple(needed):
        raise ShapeError(f"{name} has shape {tuple(given)}; it must match {tuple(needed)}.")


def require_whole(name: str, value: object, low: int) -> int:
    """Return the value after checking that it is an integer of at least `low`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}.")
    return value


def require_number(name: str, value: object, *, zero: bool) -> None:
    """Check that a value is a finite number above 0, or of at least 0 with `zero`.

    Raises:
        InputError: it is not; the message names the value.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}; it must be a finite number {'of at least' if zero else 'above'} 0.")
