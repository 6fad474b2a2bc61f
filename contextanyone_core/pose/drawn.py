"""Videos of drawn poses: finding their background and skeleton, and changing the background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..media.video_io import FPS
from .drawing import FACE_DOT, HAND_COLORS, HAND_DOT, JOINT_COLORS, LIMB_COLORS, Color
from .sequence import Pixels

TOLERANCE = 12
"""Maximum difference per channel of a background pixel: video codecs change it by a few levels."""

_PLAIN = 0.5  # minimum fraction of background pixels
_SKELETON = 0.0005  # minimum fraction of skeleton pixels: half of a stick figure of a tenth of the picture's height
_NEAR = 40.0  # maximum RGB distance to the colours of the drawing style
_COLOURED = 48  # minimum range of a coloured pixel's channels: half of it is left of a thin limb in a compressed video
_OPAQUE = 80.0  # how much farther than a transparent colour, in RGB, an opaque one may be and is taken all the same
_AT_ONCE = 1 << 16
_PALETTE = np.array([*LIMB_COLORS, *JOINT_COLORS, *HAND_COLORS, HAND_DOT, FACE_DOT], np.float32)


@dataclass(frozen=True)
class Drawn:
    """Properties of a drawn video: its background colour, and whether it shows the colours of the drawing style."""

    background: Color
    shows_skeleton: bool


def at_rate(frames: Pixels, fps: float) -> Pixels:
    """Drawn frames (T, H, W, 3) at 16 per second: whole frames, because a mixture of two would show two skeletons."""
    if fps == FPS:
        return frames
    count = int((len(frames) - 1) / fps * FPS + 1e-3) + 1
    chosen: Pixels = frames[np.rint(np.arange(count) * (fps / FPS)).astype(int).clip(0, len(frames) - 1)]
    return chosen


def check_size(frames: Pixels, size: tuple[int, int] | None, name: str) -> None:
    """Check that drawn frames (T, H, W, 3) can be used as they are.

    Args:
        size: (height, width) of the video to be made; None is their own.
        name: of the video, for messages.

    Raises: InputError for another size, or sides that are no multiples of 16.
    """
    height, width = frames.shape[1:3]
    high, wide = size or (height, width)
    if width % 16 or height % 16:
        raise InputError(
            f"{name} is {width} x {height} pixels; drawn poses are never resized, and a video's sides are "
            "multiples of 16. Give keypoints, which are drawn at any size."
        )
    if (height, width) != (high, wide):
        raise InputError(
            f"{name} is {width} x {height} pixels, the video {wide} x {high}; drawn poses are never resized. Ask for a "
            "video of their size, or give keypoints, which are drawn at any size."
        )


def inspect_drawn(frames: Pixels) -> Drawn:
    """Find the background of drawn frames, uint8 (T, H, W, 3), and check for a skeleton on it.

    Raises: InputError if no single colour covers half of the pixels: the video does not show drawn poses.
    """
    most = int(np.bincount(_packed(frames).reshape(-1)).argmax())
    near = frames[_near(frames, _unpacked(most))]
    background = np.median(near, axis=0).round().astype(int)
    red, green, blue = background.tolist()
    plain = _near(frames, background.astype(np.uint8))
    if plain.mean() < _PLAIN:
        raise InputError(
            f"the video has no plain background: its most frequent colour ({red}, {green}, {blue}) covers "
            f"{100 * plain.mean():.0f} percent. Give a video of drawn poses, or estimate the poses of a person."
        )
    of_skeleton = sum(int((_unmixed(part, background)[1] < _NEAR).sum()) for part in _parts(frames[~plain]))
    return Drawn((red, green, blue), of_skeleton >= _SKELETON * plain.size)


def drawn_parts(frames: Pixels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where drawn frames, uint8 (T, H, W, 3), show anything but their background, and where that is coloured.

    Limbs, joints and hands are coloured, white dots of a face and grey writing are not. Both are (T, H, W).

    Raises: InputError as `inspect_drawn`.
    """
    background = np.array(inspect_drawn(frames).background, np.uint8)
    drawn = ~_near(frames, background)
    coloured = np.zeros_like(drawn)
    coloured[drawn] = np.ptp(frames[drawn].astype(np.int16) - background, axis=1) >= _COLOURED
    return drawn, coloured


def recolour(frames: Pixels, background: Color) -> Pixels:
    """Drawn frames, uint8 (T, H, W, 3), on another background; anti-aliased edges are preserved.

    Each pixel is modelled as a mixture of the old background and one of the style's colours, and the background in it
    is replaced. Frames that already have the background are returned unchanged.

    Raises: InputError as `inspect_drawn`, or if most of the drawing does not have the style's colours.
    """
    old = np.array(inspect_drawn(frames).background, np.float32)
    new = np.array(background, np.float32)
    if np.abs(old - new).max() <= TOLERANCE:
        return frames
    plain = _near(frames, old.astype(np.uint8))
    drawn = frames[~plain]
    result = frames.copy()
    result[plain] = background
    parts, foreign = [], 0
    for part in _parts(drawn):
        share, distance = _unmixed(part, old)
        foreign += int((distance >= _NEAR).sum())
        parts.append(np.clip(part + (1 - share)[:, None] * (new - old), 0, 255).round().astype(np.uint8))
    if 2 * foreign > len(drawn):
        raise InputError(
            f"the video is drawn on ({', '.join(f'{value:.0f}' for value in old)}) in colours that are not DWPose's; "
            f"it cannot be put on {background}. Give keypoints, or draw it on that background."
        )
    if parts:
        result[~plain] = np.concatenate(parts)
    return result


def _parts(pixels: Pixels) -> list[NDArray[np.float32]]:
    """Pixels (N, 3) in chunks, to bound the memory of their distances to all colours."""
    return [pixels[start : start + _AT_ONCE].astype(np.float32) for start in range(0, len(pixels), _AT_ONCE)]


def _unmixed(
    pixels: NDArray[np.float32], background: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Opacity of the drawing in each pixel (N, 3), from 0 to 1, and the pixel's distance (N,) from that mixture."""
    lines = _PALETTE - background  # (K, 3)
    lengths = np.maximum((lines**2).sum(axis=1), 1e-6)
    away = pixels - background
    share = (away @ lines.T / lengths).clip(0, 1).astype(np.float32)  # (N, K)
    distance = (away**2).sum(axis=1)[:, None] - 2 * share * (away @ lines.T) + share**2 * lengths
    apart = np.sqrt(distance.clip(min=0))
    # On black, a darkened limb and the edge of a joint in full colour are the same mixture, between which a codec's
    # noise would decide: prefer the higher opacity.
    best = (apart + _OPAQUE * (1 - share)).argmin(axis=1)[:, None]
    return np.take_along_axis(share, best, 1)[:, 0], apart.min(axis=1).astype(np.float32)


def _near(frames: Pixels, colour: Pixels) -> NDArray[np.bool_]:
    low, high = (np.clip(colour.astype(int) + step, 0, 255).astype(np.uint8) for step in (-TOLERANCE, TOLERANCE))
    near: NDArray[np.bool_] = ((frames >= low) & (frames <= high)).all(axis=-1)
    return near


def _packed(frames: Pixels) -> NDArray[np.uint16]:
    """Each pixel's colour as one number, quantised by steps of eight levels to absorb a codec's noise."""
    coarse = (frames >> 3).astype(np.uint16)
    packed: NDArray[np.uint16] = np.left_shift(coarse[..., 0], 10) | np.left_shift(coarse[..., 1], 5) | coarse[..., 2]
    return packed


def _unpacked(value: int) -> Pixels:
    return np.array([(value >> 10 & 31) * 8 + 4, (value >> 5 & 31) * 8 + 4, (value & 31) * 8 + 4], np.uint8)
