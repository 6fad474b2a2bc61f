"""Pose pictures of the character world's clips, as the pose channels get them in training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.pose.body import BONE_TO, Body, bone_lengths
from contextanyone_core.pose.drawing import MINIATURE, draw_poses
from contextanyone_core.pose.fitting import RATIO, fit_bones
from contextanyone_core.pose.layouts import to_whole
from contextanyone_core.pose.sequence import Pixels, PoseSequence, sequence_of
from training.data.frames import FPS

STRETCHED = 0.1
"""The share of clips in which one limb of the pose, not of the person, has another length."""

_LIMBS = tuple(tuple(BONE_TO[joint] for joint in joints) for joints in ((3, 4), (6, 7), (9, 10), (12, 13)))


def world_poses(keypoints: NDArray[np.float32], size: tuple[int, int]) -> PoseSequence:
    """The poses of the world's keypoints (T, 14, 2), on a canvas of ``size`` = (height, width) pixels."""
    points = np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=-1).astype(np.float64)
    return sequence_of(to_whole(points, "body14"), size, FPS)


def drawn_poses(keypoints: NDArray[np.float32], size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """The poses of a clip as pictures (T, H, W, 3) uint8; in some clips one arm or leg is stretched or shortened.

    So the network learns to take a body's proportions from the reference (Source: One-to-All-Animation).
    """
    poses = world_poses(keypoints, size)
    if rng.random() < STRETCHED:
        poses = _stretched(poses, rng)
    return draw_poses(poses, MINIATURE)


def _stretched(poses: PoseSequence, rng: np.random.Generator) -> PoseSequence:
    lengths = bone_lengths(poses)
    low, high = np.log(RATIO)
    lengths[list(_LIMBS[rng.integers(len(_LIMBS))])] *= np.exp(rng.uniform(low, high))
    return fit_bones(poses, Body(lengths))
