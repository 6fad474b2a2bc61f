"""Poses of which one limb has another length than the person's: the proportions must come from the reference."""

from __future__ import annotations

import numpy as np

from contextanyone_core.pose.body import BONE_TO, Body, bone_lengths
from contextanyone_core.pose.fitting import RATIO, fit_bones
from contextanyone_core.pose.sequence import PoseSequence

STRETCHED = 0.1
"""The share of clips that this happens to (Source: One-to-All-Animation)."""

_LIMBS = tuple(tuple(BONE_TO[joint] for joint in joints) for joints in ((3, 4), (6, 7), (9, 10), (12, 13)))


def stretched(poses: PoseSequence, rng: np.random.Generator) -> PoseSequence:
    """With the chance of `STRETCHED`, one arm or leg stretched or shortened by up to half or twice its length."""
    if rng.random() >= STRETCHED:
        return poses
    lengths = bone_lengths(poses)
    low, high = np.log(RATIO)
    lengths[list(_LIMBS[rng.integers(len(_LIMBS))])] *= np.exp(rng.uniform(low, high))
    return poses if np.isnan(lengths).all() else fit_bones(poses, Body(lengths))
