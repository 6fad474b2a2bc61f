"""`PoseSequence`, the keypoints of one person over time, which all pose functions exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Points = NDArray[np.float64]
"""Keypoints (..., 3): x and y in pixels of the canvas, (0, 0) its upper left corner, and a score from 0 to 1."""

Pixels = NDArray[np.uint8]
"""Pictures (..., 3), upright RGB."""

BODY_18 = (
    *("nose", "neck"),
    *("right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
"""OpenPose's 18 points of a body in their order; left and right are the person's own."""

BODY, HAND, FACE = len(BODY_18), 21, 70
WHOLE = BODY + 2 * HAND + FACE
"""Number of points of a figure: body, left hand, right hand, face."""

SEEN = 0.3
"""A point is visible if its score is above this, as in DWPose and ComfyUI's SDPose node."""


@dataclass(frozen=True, eq=False)
class PoseSequence:
    """One person's keypoints in each frame of a clip, on a canvas. Points with score 0 are set to zero.

    Attributes:
        body: (T, 18, 3), the points of `BODY_18`: x, y, score.
        width, height: size of the canvas of x and y, in pixels.
        fps: frames per second.
        hands: (T, 2, 21, 3), left and right in OpenPose's order, or None.
        face: (T, 70, 3) in OpenPose's order, or None.
        remarks: what to tell the user about the poses, one line each.

    Raises: InputError for a wrong shape, no frames, values that are not finite, or a canvas or rate not above 0.
    """

    body: Points
    width: int
    height: int
    fps: float
    hands: Points | None = None
    face: Points | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0 and 0 < self.fps < np.inf):
            raise InputError(
                f"a pose on {self.width} x {self.height} pixels at {self.fps:g} frames a second is given; "
                "all three must be above 0."
            )
        for name, shape in (("body", (BODY, 3)), ("hands", (2, HAND, 3)), ("face", (FACE, 3))):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _checked(name, given, shape, len(self.body)))
        if not len(self.body):
            raise InputError("the pose holds no frame; at least one is needed.")

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.body)

    @property
    def whole(self) -> Points:
        """All points, (T, 130, 3): body, left hand, right hand, face; missing ones are zero."""
        points = np.zeros((self.num_frames, WHOLE, 3))
        points[:, :BODY] = self.body
        if self.hands is not None:
            points[:, BODY : BODY + 2 * HAND] = self.hands.reshape(-1, 2 * HAND, 3)
        if self.face is not None:
            points[:, BODY + 2 * HAND :] = self.face
        return points

    def with_points(self, whole: Points, fps: float | None = None) -> PoseSequence:
        """A copy with other points, (T, 130, 3), and optionally another rate; has hands and face only if this has."""
        hands = whole[:, BODY : BODY + 2 * HAND].reshape(-1, 2, HAND, 3)
        return replace(
            self,
            body=whole[:, :BODY],
            hands=None if self.hands is None else hands,
            face=None if self.face is None else whole[:, BODY + 2 * HAND :],
            fps=self.fps if fps is None else fps,
        )

    def remarked(self, remark: str) -> PoseSequence:
        """A copy with a further remark; an empty one is none."""
        return replace(self, remarks=(*self.remarks, remark)) if remark else self

    def at(self, frames: Sequence[int] | slice) -> PoseSequence:
        """A copy with only the given frames."""
        return self.with_points(self.whole[frames if isinstance(frames, slice) else list(frames)])

    def moved(self, factor: float, shift: tuple[float, float], size: tuple[int, int]) -> PoseSequence:
        """Every point scaled by `factor` and moved by `shift` = (x, y), on a canvas of `size` = (height, width)."""
        whole = self.whole
        whole[..., :2] = whole[..., :2] * factor + np.asarray(shift)
        height, width = size
        return replace(self.with_points(whole), width=width, height=height)

    def placed(self, size: tuple[int, int]) -> PoseSequence:
        """The whole canvas fitted into one of `size` = (height, width): aspect kept, centred."""
        height, width = size
        factor = min(width / self.width, height / self.height)
        shift = ((width - self.width * factor) / 2, (height - self.height * factor) / 2)
        return self.moved(factor, shift, size)


def sequence_of(whole: Points, size: tuple[int, int], fps: float) -> PoseSequence:
    """A sequence of all points (T, 130, 3) on a canvas of `size` = (height, width); unseen hands or face are None."""
    height, width = size
    empty = PoseSequence(whole[:, :BODY], width, height, fps, np.zeros((len(whole), 2, HAND, 3)))
    full = replace(empty, face=np.zeros((len(whole), FACE, 3))).with_points(whole)
    hands = full.hands if full.hands is not None and (full.hands[..., 2] > 0).any() else None
    face = full.face if full.face is not None and (full.face[..., 2] > 0).any() else None
    return replace(full, hands=hands, face=face)


def _checked(name: str, given: Points, shape: tuple[int, ...], frames: int) -> Points:
    points = np.array(given, dtype=np.float64)
    if points.shape != (frames, *shape):
        raise InputError(f"the pose's {name} has the shape {points.shape}; {(frames, *shape)} is needed.")
    if not np.isfinite(points).all():
        frame, *place = np.argwhere(~np.isfinite(points))[0][:-1].tolist()
        joint = BODY_18[place[0]] if name == "body" else f"point {place[-1]}"
        raise InputError(
            f"the pose's {name} has numbers that are not finite (frame {frame}, {joint}); every x, y and score must be."
        )
    points[points[..., 2] <= 0] = 0
    points[..., 2] = points[..., 2].clip(0, 1)
    return points
