"""The target body that poses are fitted to: bone lengths, and the poses that they were measured on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .pose_file import read_metadata
from .sequence import SEEN, PoseSequence

BONES = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""The limbs of BODY_18 in OpenPose's order, as (parent, child) of a tree rooted at the neck: parents come first."""

ROOT = 1
PARENT = {child: parent for parent, child in BONES}
BONE_TO = {child: bone for bone, (_, child) in enumerate(BONES)}
PERSONAL_KEY = "contextanyone.personal"
"""Header key of a personal file, a LoRA trained on one person: a JSON object (`weights/personal_file.py`). Its `bones`
are a list of 17 lengths in the order of `BONES`, null if unknown."""

_PAIRS = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (13, 15), (14, 16))  # pairs of right and left bones
_PERCENTILE = 90


@dataclass(frozen=True, eq=False)
class Body:
    """The body that poses are fitted to.

    Attributes:
        lengths: (17,) lengths of `BONES` in any unit, NaN for a bone that is not visible.
        standing: the poses that the lengths were measured on; None if only the lengths are known.
    """

    lengths: NDArray[np.float64]
    standing: PoseSequence | None = None


def body_of(poses: PoseSequence) -> Body:
    """Measure the body in a clip or a single picture, which should show the person standing.

    A bone's length is the 90th percentile over the frames that show it, because foreshortening only makes limbs
    shorter. Left and right bones get the larger of both lengths.

    Raises: InputError if no bone is visible.
    """
    lengths = bone_lengths(poses)
    if np.isnan(lengths).all():
        raise InputError("the body shows no bone: no limb has both ends in a frame; give a picture of all of it.")
    return Body(lengths, poses)


def bone_lengths(poses: PoseSequence) -> NDArray[np.float64]:
    """Lengths (17,) of `BONES` in pixels, equal on both sides, NaN for a bone that no frame shows."""
    lengths = np.full(len(BONES), np.nan)
    for bone, (parent, child) in enumerate(BONES):
        ends = poses.body[:, [parent, child]]
        shown = (ends[..., 2] > SEEN).all(axis=1)
        across = np.linalg.norm(ends[shown, 0, :2] - ends[shown, 1, :2], axis=1)
        if (across > 0).any():
            lengths[bone] = np.percentile(across, _PERCENTILE)
    for right, left in _PAIRS:
        lengths[[right, left]] = np.fmax(lengths[right], lengths[left])
    lengths[lengths == 0] = np.nan
    return lengths


def read_personal_body(path: Path) -> Body:
    """The bone lengths in the header of a personal file, a LoRA that was trained on one person.

    Raises: InputError if the file cannot be read or has no lengths, or they are not 17 positive numbers or nulls.
    """
    try:
        stated = json.loads(read_metadata(path).get(PERSONAL_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {PERSONAL_KEY} in its header is not JSON.") from error
    values = stated.get("bones") if isinstance(stated, dict) else None
    if values is None:
        raise InputError(
            f"{path} has no bone lengths in its header; give keypoints, a picture or a clip of the person."
        )
    try:
        return body_of_lengths(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def stated_lengths(body: Body) -> list[float | None]:
    """A body's lengths as a personal file's header states them."""
    return [None if np.isnan(value) else round(float(value), 4) for value in body.lengths]


def body_of_lengths(values: object) -> Body:
    """The body of a header's list. Raises: InputError unless it is 17 positive numbers or nulls, not all null."""
    numbers = values if isinstance(values, list) else []
    valid = all(value is None or (type(value) in (int, float) and 0 < value < np.inf) for value in numbers)
    lengths = np.array([np.nan if value is None else float(value) for value in numbers if valid])
    if lengths.shape != (len(BONES),) or np.isnan(lengths).all():
        raise InputError(f"the bone lengths must be {len(BONES)} numbers above 0, null where one is not known.")
    return Body(lengths)


def ancestors(joint: int) -> list[int]:
    """The joints from a joint's parent up to the root, the neck."""
    chain = []
    while joint in PARENT:
        joint = PARENT[joint]
        chain.append(joint)
    return chain
