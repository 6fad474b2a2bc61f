"""Keypoint layouts, and their conversion to `BODY_18`, hands and face."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .sequence import BODY, BODY_18, FACE, HAND, SEEN, WHOLE, Points

LAYOUTS = {"body14": 14, "coco17": 17, "body18": 18, "wholebody133": 133}
"""The layouts that a pose file may state, and how many points each has.

body14: the character world's: head (taken as the nose), neck, shoulder, elbow and wrist at the picture's left, then at
its right, hip, knee and ankle the same. A figure that faces the viewer has its right side at the picture's left, so
this is the order of the first 14 points of `BODY_18`: nothing moves to the other side.
coco17: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, left before right; it has no neck.
wholebody133: coco17, 6 points of the feet (not used), 68 of the face, 21 of the left hand, 21 of the right one.
"""

_COCO = ("nose", *(f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
                   for side in ("left", "right")))  # fmt: skip
_BODY_25 = (*BODY_18[:8], "mid_hip", *BODY_18[8:])  # OpenPose's default; six points of the feet follow
_NECK, _SHOULDERS = BODY_18.index("neck"), (BODY_18.index("right_shoulder"), BODY_18.index("left_shoulder"))


def joint_name(index: int, count: int) -> str:
    """The name of one of `count` points, of a body if that is the number of a known layout, else its number from 0."""
    names = {17: _COCO, BODY: BODY_18, 25: _BODY_25}.get(count, ())
    return names[index] if index < len(names) else f"point {index}"


def to_whole(points: Points, layout: str) -> Points:
    """Convert points (..., K, 3) of a layout to all points of a figure, (..., 130, 3); missing ones are zero.

    If a layout lacks the neck, it is the midpoint of the shoulders; its score is the smaller of theirs if both are
    visible, else 0.

    Raises: InputError for an unknown layout, or a number of points that does not match it.
    Source: ComfyUI's SDPose node and DWPose (the neck), OpenPose (BODY_18), COCO-WholeBody (133 points).
    """
    if layout not in LAYOUTS:
        raise InputError(f"the pose's layout is {layout!r}; known are {', '.join(LAYOUTS)}.")
    if points.ndim < 2 or points.shape[-2:] != (LAYOUTS[layout], 3):
        raise InputError(
            f"the pose states the layout {layout} and has the shape {points.shape}; "
            f"x, y and score of {LAYOUTS[layout]} points are needed."
        )
    whole = np.zeros((*points.shape[:-2], WHOLE, 3))
    if layout in ("body14", "body18"):
        whole[..., : points.shape[-2], :] = points
        return whole
    whole[..., :BODY, :] = from_coco(points[..., :17, :])
    if layout == "wholebody133":
        whole[..., BODY : BODY + 2 * HAND, :] = points[..., 91:133, :]
        whole[..., BODY + 2 * HAND : BODY + 2 * HAND + 68, :] = points[..., 23:91, :]
    return whole


def from_coco(points: Points) -> Points:
    """Convert COCO's 17 points (..., 17, 3) to `BODY_18`, (..., 18, 3)."""
    body = np.zeros((*points.shape[:-2], BODY, 3))
    for index, name in enumerate(BODY_18):
        if name != "neck":
            body[..., index, :] = points[..., _COCO.index(name), :]
    right, left = (body[..., index, :] for index in _SHOULDERS)
    scores = np.minimum(right[..., 2], left[..., 2])
    seen = scores > SEEN
    body[..., _NECK, :2] = np.where(seen[..., None], (right[..., :2] + left[..., :2]) / 2, 0)
    body[..., _NECK, 2] = np.where(seen, scores, 0)
    return body


def from_flat_body(numbers: Points) -> Points:
    """Convert `pose_keypoints_2d` of OpenPose's JSON, (K, 3) with 18, 25 or COCO's 17 points, to `BODY_18`, (18, 3).

    Raises: InputError for another number of points.
    """
    if len(numbers) == BODY:
        return numbers
    if len(numbers) == 17:
        return from_coco(numbers)
    if len(numbers) == 25:
        return numbers[[_BODY_25.index(name) for name in BODY_18]]
    raise InputError(
        f"pose_keypoints_2d has {len(numbers)} points; 18 (OpenPose), 25 (BODY_25) or 17 (COCO) are known."
    )


def padded_face(points: Points) -> Points:
    """Convert 68 or 70 points of a face to OpenPose's 70; of 68, the two pupils are missing.

    Raises: InputError for another number of points.
    """
    if len(points) not in (68, FACE):
        raise InputError(f"face_keypoints_2d has {len(points)} points; 70 (OpenPose) or 68 are known.")
    return np.concatenate([points, np.zeros((FACE - len(points), 3))])
