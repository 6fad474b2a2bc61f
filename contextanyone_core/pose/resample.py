"""Keypoints over time: resampling to 16 frames per second, filling short gaps, optional smoothing."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..media.video_io import FPS
from ..shapes import counted_frames, usable_frames
from .sequence import SEEN, Points, PoseSequence

MAX_GAP = 5  # frames, a third of a second
MAX_FRAMES = 2001  # maximum number of frames of a clip
_SMOOTH = np.array([-3, 12, 17, 12, -3]) / 35  # Savitzky-Golay, window 5, order 2


def prepare(poses: PoseSequence, *, smooth: bool = False) -> PoseSequence:
    """Prepare poses for fitting and drawing: resample to 16 frames per second and fill gaps of up to 5 frames.

    Args:
        smooth: also apply a Savitzky-Golay filter; off by default, because it removes the accents of a dance.
    """
    filled = fill_gaps(resample(poses))
    return smoothed(filled) if smooth else filled


def within_limit(poses: PoseSequence) -> PoseSequence:
    """As much of the beginning as a clip can have, with a remark if that is not all."""
    most = most_frames(poses.fps)
    if poses.num_frames <= most:
        return poses
    remark = (
        f"the pose has {poses.num_frames} frames at {poses.fps:g} a second; a video has at most {MAX_FRAMES} at {FPS}, "
        f"so the first {most} are used"
    )
    return poses.at(slice(most)).remarked(remark)


def most_frames(fps: float) -> int:
    """How many frames at `fps` a clip of the greatest length is made of."""
    return int((MAX_FRAMES - 1) * fps / FPS + 1e-3) + 1


def source_frames(num_frames: int, fps: float) -> int:
    """How many frames at `fps` a clip of `num_frames` is made of, with those that fill gaps at its end."""
    return math.ceil((num_frames + MAX_GAP + len(_SMOOTH) // 2) * fps / FPS) + 1


def resample(poses: PoseSequence, fps: float = FPS) -> PoseSequence:
    """Resample to another frame rate, starting at the first frame, as `at_places`; at the same rate nothing changes.

    Raises: InputError if the result would have more frames than a clip can have.
    """
    count = int((poses.num_frames - 1) / poses.fps * fps + 1e-3) + 1
    if count > MAX_FRAMES:
        raise InputError(
            f"the pose has {poses.num_frames} frames at {poses.fps:g} a second, {count} at {fps:g}; at most "
            f"{MAX_FRAMES} can be used. Cut it, state its rate, or ask for some frames of it, such as --frames 81."
        )
    return at_places(poses, np.asarray(np.arange(count) * (poses.fps / fps), np.float64), fps)


def at_places(poses: PoseSequence, place: NDArray[np.float64], fps: float) -> PoseSequence:
    """The poses at places between the frames, (T,) in frames, those outside held at the ends; `fps` is their rate.

    A point that both neighbouring frames show is interpolated linearly. Otherwise it is taken from the nearer frame,
    where it may be missing.
    """
    nearest = np.rint(place)
    place = np.where(np.abs(place - nearest) < 1e-6, nearest, place).clip(0, poses.num_frames - 1)
    before = np.floor(place).astype(int)
    after = np.minimum(before + 1, poses.num_frames - 1)
    share = (place - before)[:, None, None]
    whole = poses.whole
    first, second = whole[before], whole[after]
    both = ((first[..., 2] > SEEN) & (second[..., 2] > SEEN))[..., None]
    between = np.where(both, first * (1 - share) + second * share, np.where(share <= 0.5, first, second))
    return poses.with_points(between, fps)


def fill_gaps(poses: PoseSequence, longest: int = MAX_GAP) -> PoseSequence:
    """Interpolate points that are missing for at most `longest` frames; gaps at the beginning and end remain.

    A filled point gets the smaller score of its two neighbours.
    """
    whole = poses.whole
    for point in range(whole.shape[1]):
        frames = np.flatnonzero(whole[:, point, 2] > SEEN)
        for start, end in pairwise(frames.tolist()):
            if 1 < end - start <= longest + 1:
                whole[start : end + 1, point] = _line(whole[start, point], whole[end, point], end - start)
    return poses.with_points(whole)


def smoothed(poses: PoseSequence) -> PoseSequence:
    """Apply a Savitzky-Golay filter (window 5, order 2) to each point that is visible in all five frames.

    Motion with constant acceleration is unchanged.
    """
    whole = poses.whole
    if poses.num_frames < len(_SMOOTH):
        return poses
    windows = np.lib.stride_tricks.sliding_window_view(whole, len(_SMOOTH), axis=0)  # (T - 4, K, 3, 5)
    seen: NDArray[np.bool_] = np.all(windows[:, :, 2] > SEEN, axis=-1)
    smooth = windows[:, :, :2] @ _SMOOTH
    middle = slice(len(_SMOOTH) // 2, poses.num_frames - len(_SMOOTH) // 2)
    result = whole.copy()
    result[middle, :, :2] = np.where(seen[..., None], smooth, whole[middle, :, :2])
    return poses.with_points(result)


def clip_of(poses: PoseSequence, num_frames: int) -> PoseSequence:
    """The first `num_frames` frames.

    Raises: InputError if there are fewer; the message names the largest available number of the form 4k + 1.
    """
    if poses.num_frames < num_frames:
        raise InputError(
            f"the pose has {counted_frames(poses.num_frames)} at {FPS} a second, the clip {num_frames}; "
            f"ask for at most {counted_frames(usable_frames(poses.num_frames))}."
        )
    return poses.at(slice(num_frames))


def _line(start: Points, end: Points, steps: int) -> Points:
    share = np.linspace(0, 1, steps + 1)[:, None]
    line: Points = start * (1 - share) + end * share
    line[1:-1, 2] = min(start[2], end[2])
    return line
