"""Which video sizes the model can make: 4k + 1 frames, sides that are multiples of 16 (Wan 2.1's VAE and patches)."""

from __future__ import annotations

from .errors import InputError

FRAME_STEP = 4  # the VAE: 4 frames to one latent frame after the first
SIDE_STEP = 16  # the VAE: 8 pixels to a latent; the transformer: 2 latents to a token


def check_frames(count: object, name: str = "num_frames") -> None:
    """Refuse a number of frames that is not 4k + 1.

    Raises:
        InputError: naming the two nearest numbers that are.
    """
    frames = require_whole(name, count, 1)
    if frames % FRAME_STEP != 1:
        near = frames - (frames - 1) % FRAME_STEP
        raise InputError(f"{name} is {frames}; Wan needs 4k + 1 frames, such as {near} or {near + FRAME_STEP}.")


def check_side(side: object, name: str) -> None:
    """Refuse a width or height that is not a multiple of 16.

    Raises:
        InputError: naming the two nearest that are.
    """
    pixels = require_whole(name, side, 1)
    if pixels % SIDE_STEP:
        below = pixels - pixels % SIDE_STEP
        near = f"{below} or {below + SIDE_STEP}" if below else f"{SIDE_STEP}"
        raise InputError(f"{name} is {pixels}; it must be a multiple of {SIDE_STEP}, such as {near}.")


def require_whole(name: str, value: object, low: int) -> int:
    """The value, if it is a whole number of at least `low`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}.")
    return value
