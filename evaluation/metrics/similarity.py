"""Similarities of features: to the reference, over time, and VBench's consistency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]


def to_reference(frames: Features, reference: Features) -> NDArray[np.float64]:
    """Cosine of each frame (N, D) to the reference (1, D): (N,). Features have length 1."""
    return np.asarray(frames.astype(np.float64) @ reference[0].astype(np.float64))


def slope(similarities: NDArray[np.float64], seconds: NDArray[np.float64]) -> float | None:
    """Change per second by least squares; None of fewer than two frames."""
    if len(similarities) < 2:
        return None
    return float(np.polyfit(seconds, similarities, 1)[0])


def at_gap(frames: Features, gap: int) -> float | None:
    """Mean cosine of frames that are `gap` apart; None of a clip that is too short."""
    if len(frames) <= gap:
        return None
    exact = frames.astype(np.float64)
    return float((exact[:-gap] * exact[gap:]).sum(1).mean())


def subject_consistency(frames: Features) -> float | None:
    """VBench's subject consistency of one clip, by its published formula; None of fewer than two frames.

    Each frame after the first: the mean of its cosine to the first frame and to the one before, each cut at 0; then
    the mean of them. The original takes DINO ViT-B/16; any DINO gives other numbers.
    """
    if len(frames) < 2:
        return None
    exact = frames.astype(np.float64)
    first = np.maximum(0, exact[1:] @ exact[0])
    before = np.maximum(0, (exact[1:] * exact[:-1]).sum(1))
    return float(((first + before) / 2).mean())
