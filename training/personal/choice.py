"""Which frames of the clip are trained on as pictures, and which stretches as clips."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.pose.sequence import SEEN, PoseSequence
from training.data.buckets import BucketSettings
from training.data.video_windows import longest

_FEWEST, _MOST = 16, 48  # pictures
_CLIPS = 16  # stretches at most


def choose_stills(poses: PoseSequence, usable: NDArray[np.bool_]) -> list[int]:
    """Frames of the most different poses, in the order of the clip: 16 to 48 of those that are usable.

    Farthest points in the space of the joints around their middle: near duplicates teach nothing and are overfitted.
    Where the person comes nearer, the size counts too. The first is the one nearest to the mean pose.
    """
    candidates = np.flatnonzero(usable)
    count = min(len(candidates), max(_FEWEST, min(_MOST, len(candidates) // 3)))
    space = _around_the_middle(poses)[candidates]
    chosen = [int(np.linalg.norm(space - space.mean(axis=0), axis=1).argmin())] if count else []
    nearest = np.full(len(candidates), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.linalg.norm(space - space[chosen[-1]], axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return sorted(int(candidates[index]) for index in chosen)


def _around_the_middle(poses: PoseSequence) -> NDArray[np.float64]:
    """Joints (T, 36) around their middle, in pixels; what is not seen is as in the mean."""
    points = poses.body[..., :2].copy()
    points[poses.body[..., 2] <= SEEN] = np.nan
    points -= _mean(points, 1)[:, None]
    return np.where(np.isnan(points), _mean(points, 0)[None], points).reshape(len(points), -1)


def _mean(points: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean of what is seen along an axis; 0 where nothing is."""
    seen = ~np.isnan(points)
    mean: NDArray[np.float64] = np.nan_to_num(points).sum(axis=axis) / np.maximum(seen.sum(axis=axis), 1)
    return mean


def choose_clips(frames: int, fps: float, at_16: int, buckets: BucketSettings) -> list[tuple[int, int]]:
    """Stretches (start, frames) of the longest bucket that the shot fills, evenly spread, at most half overlapping.

    Args:
        frames: of the shot. fps: its rate. at_16: its frames at 16 a second, 9 at least.
    """
    length = longest(buckets.frames, at_16) or at_16
    needed = min(frames, math.ceil((length - 1) / 16 * fps) + 1)
    count = max(1, min(_CLIPS, 1 + 2 * (frames - needed) // needed))
    starts = sorted({round(place) for place in np.linspace(0, frames - needed, count)})
    return [(start, needed) for start in starts]
