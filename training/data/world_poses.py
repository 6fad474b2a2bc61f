"""Pose pictures of the character world's clips, as the condition channels get them in training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.media.video_io import FPS
from contextanyone_core.pose.drawing import MINIATURE, draw_poses
from contextanyone_core.pose.layouts import to_whole
from contextanyone_core.pose.sequence import Pixels, PoseSequence, sequence_of
from training.data.limb_stretch import stretched


def world_poses(keypoints: NDArray[np.float32], size: tuple[int, int]) -> PoseSequence:
    """The poses of the world's keypoints (T, 14, 2), on a canvas of ``size`` = (height, width) pixels."""
    points = np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=-1).astype(np.float64)
    return sequence_of(to_whole(points, "body14"), size, FPS)


def drawn_poses(keypoints: NDArray[np.float32], size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """The poses of a clip as pictures (T, H, W, 3) uint8; in some clips one arm or leg is stretched."""
    return draw_poses(stretched(world_poses(keypoints, size), rng), MINIATURE)
