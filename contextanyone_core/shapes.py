"""Sizes of a video in pixels, latents and tokens, and which of them the model can make (Wan 2.1's VAE and patches)."""

from __future__ import annotations

import math
from typing import NamedTuple

from .config import ContextAnyoneConfig
from .errors import InputError

FRAME_STEP = 4  # the VAE: 4 frames to one latent frame after the first
SIDE_STEP = 16  # the VAE: 8 pixels to a latent; the transformer: 2 latents to a token


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
        """One frame of this size, such as a reference."""
        return self._replace(num_frames=1)

    def latents(self, config: ContextAnyoneConfig) -> tuple[int, int, int]:
        """(t, h, w) of its latents: t = 1 + (T - 1) / 4, h = H / 8, w = W / 8."""
        frames, rows, columns = config.vae_stride
        return 1 + (self.num_frames - 1) // frames, self.height // rows, self.width // columns

    def latents_shape(self, config: ContextAnyoneConfig, batch: int = 1) -> tuple[int, int, int, int, int]:
        """(B, C, t, h, w) of a batch's latents."""
        return (batch, config.in_dim, *self.latents(config))

    def token_count(self, config: ContextAnyoneConfig) -> int:
        """How many tokens the transformer makes of its latents."""
        return math.prod(side // patch for side, patch in zip(self.latents(config), config.patch_size, strict=True))


def frames_mistake(frames: int) -> str | None:
    """What is wrong with a number of frames that is not 4k + 1, naming the two nearest that are; None where it is."""
    if frames % FRAME_STEP == 1:
        return None
    below = frames - (frames - 1) % FRAME_STEP
    return f"Wan needs 4k + 1 frames, such as {below} or {below + FRAME_STEP}"


def side_mistake(pixels: int) -> str | None:
    """What is wrong with a side that is no multiple of 16, naming those around it; None where it is one."""
    if pixels % SIDE_STEP == 0 and pixels > 0:
        return None
    below = pixels - pixels % SIDE_STEP
    near = [str(side) for side in (below, below + SIDE_STEP) if side > 0]
    return f"it must be a multiple of {SIDE_STEP}, such as {' or '.join(near)}"


def check_frames(count: object, name: str = "num_frames") -> None:
    """Refuse a number of frames that is not 4k + 1.

    Raises:
        InputError: naming the two nearest numbers that are.
    """
    frames = require_whole(name, count, 1)
    if mistake := frames_mistake(frames):
        raise InputError(f"{name} is {frames}; {mistake}.")


def check_side(side: object, name: str) -> None:
    """Refuse a width or height that is not a multiple of 16.

    Raises:
        InputError: naming the ones below and above it.
    """
    pixels = require_whole(name, side, 1)
    if mistake := side_mistake(pixels):
        raise InputError(f"{name} is {pixels}; {mistake}.")


def require_whole(name: str, value: object, low: int) -> int:
    """The value, if it is a whole number of at least `low`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}.")
    return value


def require_number(name: str, value: object, *, zero: bool) -> None:
    """Refuse what is no finite number above 0, or with `zero` of at least 0.

    Raises:
        InputError: naming the value.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}; it must be a finite number {'of at least' if zero else 'above'} 0.")
