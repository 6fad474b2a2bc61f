"""Frames of a video file, small and few: what the pixel stages look at, as training reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.video import video_frames

Frames = NDArray[np.uint8]

_PAIRS = 16
_LONG_SIDE = 256
_ROWS = 64  # whose pairs are kept, of 3.5 MB each at 16 : 9: a stage takes all rows of a source, then the next does


def prepare_process() -> None:
    """One thread for OpenCV, for there is a process for each worker."""
    cv2.setNumThreads(1)


def frames_of(path: Path, long_side: int, start: int = 0) -> Iterator[Frames]:
    """Every frame from number `start` on, upright RGB uint8 (H, W, 3), its long side at most `long_side` pixels.

    Raises: MediaError where it cannot be decoded, or not be shown faithfully.
    """
    for picture in video_frames(path, start):
        yield _small(picture, long_side)


def _small(picture: Frames, long_side: int) -> Frames:
    height, width = picture.shape[:2]
    share = long_side / max(height, width)
    if share >= 1:
        return picture
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=_ROWS)
def pairs_of(path: Path, start: int, stop: int) -> tuple[tuple[Frames, Frames], ...]:
    """Up to 16 pairs of neighbouring frames, evenly over a span; one decoding serves all stages of a row.

    Raises: as `frames_of`.
    """
    firsts = sorted({int(at) for at in np.linspace(start, max(start, stop - 2), _PAIRS)})
    wanted = {number for first in firsts for number in (first, first + 1)}
    found: dict[int, Frames] = {}
    for number, picture in enumerate(frames_of(path, _LONG_SIDE, start), start):
        if number in wanted:
            found[number] = picture
        if number >= max(wanted):
            break
    return tuple((found[first], found.get(first + 1, found[first])) for first in firsts if first in found)


def grey(picture: Frames) -> NDArray[np.float32]:
    """Luma, float32 (H, W), 0 to 255."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)
