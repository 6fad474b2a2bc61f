"""How much a clip moves: optical flow of all neighbouring frames."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

SIDE = 320  # the longer side, in pixels, at which flow is computed; what is smaller stays as it is
_LEAST = 16  # pixels of a side: DIS reads beyond smaller pictures, whose half is less than its patch of 8
MATCHED = (0.5, 2.0)
"""Ratios to the base's motion between which identity counts."""

_STILL = 0.01  # diagonals a second; a frozen clip has up to 0.006 from the codec alone


def flow_lengths(frames: Frames) -> NDArray[np.float32]:
    """Mean length of the flow (OpenCV's DIS, medium preset) between neighbouring frames, in diagonals: (T - 1,).

    What is less than 16 pixels high or wide is continued by its edge up to there; only its own pixels count.
    """
    grey = [_small(frame) for frame in frames]
    height, width = grey[0].shape
    diagonal = float(np.hypot(height, width))
    grey = [_continued(frame) for frame in grey]
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    lengths = []
    for one, other in pairwise(grey):
        flow = np.zeros((*one.shape, 2), np.float32)
        if not np.array_equal(one, other):
            flow = estimator.calc(one, other, flow)
        lengths.append(float(np.linalg.norm(flow[:height, :width], axis=-1).mean()) / diagonal)
    return np.asarray(lengths, np.float32)


def per_second(lengths: NDArray[np.float32], rate: float) -> float:
    """Motion in diagonals a second; a single frame has none."""
    return float(lengths.mean()) * rate if len(lengths) else 0.0


def ratio(motion: float, base: float) -> float | None:
    """Motion over the base's; None where the base does not move."""
    return None if base < _STILL else motion / base


def is_matched(found: float) -> bool:
    """Whether a ratio lies between half and double."""
    return MATCHED[0] <= found <= MATCHED[1]


def _small(frame: Frames) -> Frames:
    grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
    scale = SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(round(grey.shape[1] * scale), _LEAST), max(round(grey.shape[0] * scale), _LEAST))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _continued(grey: Frames) -> Frames:
    missing = [(0, max(_LEAST - side, 0)) for side in grey.shape]
    return np.pad(grey, missing, mode="edge") if any(after for _, after in missing) else grey
