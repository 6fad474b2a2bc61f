"""Windows of a clip as long as the buckets; lengths are counted in the model's 16 frames a second. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contextanyone_core.media.video_io import FPS

_SLACK = 5e-4  # of a frame at 16 a second: times are rounded


@dataclass(frozen=True)
class Windows:
    """Parts of a clip as (first frame, number of frames), the number None for all to the end.

    They lie in the `length` frames from `first` on; `available` is those at 16 a second, and `used` how many of them
    the windows have.
    """

    parts: list[tuple[int, int | None]]
    first: int
    length: int
    available: int
    used: int


def frames_available(times: Sequence[float]) -> int:
    """How many frames at 16 a second the time between the first and the last of `times` (seconds) holds."""
    return int((times[-1] - times[0]) * FPS + 1e-3) + 1 if times else 0


def longest(lengths: Sequence[int], available: int) -> int | None:
    """The longest length that a clip of `available` frames (at 16 a second) fills, None where there is none."""
    return max((count for count in lengths if count <= available), default=None)


def cut_windows(times: Sequence[float], lengths: Sequence[int]) -> Windows:
    """One part after the other, each as long as the longest bucket that what is left of the clip fills.

    A clip that fills no bucket of several frames is one part, and so is one of a single frame. What is left at the end
    and fills none is not used.

    Args:
        times: seconds of the clip's frames, increasing. lengths: of the buckets, in frames at 16 a second.
    """
    available = frames_available(times)
    several = [count for count in lengths if count > 1]
    if longest(several, available) is None:
        return Windows([(0, None)], 0, len(times), available, longest(lengths, available) or 0)
    source = np.asarray(times, np.float64)
    parts: list[tuple[int, int | None]] = []
    start = used = 0
    while start < len(times) and (length := longest(several, frames_available(times[start:]))) is not None:
        last = int(np.searchsorted(source, source[start] + (length - 1 - _SLACK) / FPS))
        parts.append((start, last - start + 1))
        used += length
        after = int(np.searchsorted(source, source[0] + used / FPS))  # or the one before, if nearer to the moment
        nearer = (
            0 < after < len(times)
            and source[0] + used / FPS - source[after - 1] < source[after] - source[0] - used / FPS
        )
        start = max(last + 1, after - 1 if nearer else after)
    return Windows(parts, 0, len(times), available, used)
