"""Keypoints of a standing figure with given bone lengths, for functions that take a body as keypoints."""

from __future__ import annotations

import numpy as np

from .body import BONES, Body
from .sequence import BODY, Points, PoseSequence

_ANGLES = np.radians([180, 0, 110, 100, 70, 80, 100, 92, 90, 80, 88, 90, 270, 225, 190, 315, 350])
"""Directions of `BONES` in a picture of a person who stands and faces the viewer; y goes down."""

_SIDE, _SHARE, _FPS = 512, 0.8, 16.0  # canvas in pixels, its fraction that the figure fills, and an unused frame rate


def standing_figure(body: Body) -> PoseSequence:
    """A standing figure with a body's proportions, which `body_of` measures again.

    Where a bone of unknown length separates some bones from the others, they are drawn in a frame of their own.
    """
    left = {bone for bone, length in enumerate(body.lengths) if not np.isnan(length)}
    frames: list[Points] = []
    while left:
        frame = np.zeros((BODY, 3))
        frame[BONES[min(left)][0], 2] = 1
        for bone in sorted(left):  # parents come first
            parent, child = BONES[bone]
            if frame[parent, 2]:
                along = np.array([np.cos(_ANGLES[bone]), np.sin(_ANGLES[bone])])
                frame[child] = (*(frame[parent, :2] + body.lengths[bone] * along), 1)
                left.remove(bone)
        frames.append(frame)
    return PoseSequence(_placed(np.stack(frames)), _SIDE, _SIDE, _FPS)


def _placed(bodies: Points) -> Points:
    """Bodies (T, 18, 3) scaled by one factor, each in the middle of the canvas."""
    placed = bodies.copy()
    shown = [body[body[:, 2] > 0, :2] for body in bodies]
    factor = _SHARE * _SIDE / max(float(np.ptp(points, axis=0).max()) for points in shown)
    for body, points in zip(placed, shown, strict=True):
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        body[:, :2] = np.where(body[:, 2:] > 0, (body[:, :2] - middle) * factor + _SIDE / 2, 0)
    return placed
