"""Fitting one person's poses to another's body, so that the driver's proportions do not become the character's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .body import BONE_TO, BONES, Body, ancestors, bone_lengths
from .sequence import BODY, HAND, SEEN, Points, PoseSequence

# Paper: AnimateAnywhere does not say whose proportions its pose videos have, the driver's or the character's.
FITS = ("none", "affine", "bones")
RATIO = (0.5, 2.0)
"""Ratios of bone lengths are clipped to this, after their median is divided out."""

_NOSE, _WRISTS, _HIPS, _ANKLES = 0, (7, 4), (8, 11), (10, 13)  # wrists in the order of the hands: left, right
_LEGS = (7, 8, 10, 11)  # bones
_FACE_BONES = (13, 14, 15, 16)
_ALIGNED = (0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)  # the arms move too much
Shift = NDArray[np.float64]


def fit(poses: PoseSequence, body: Body | None, how: str) -> PoseSequence:
    """Poses for another body.

    Args:
        how: `none`, the poses as they are; `affine`, moved and enlarged as a whole, the same for all frames, onto the
            picture or clip of the body, on its canvas; `bones`, each bone as long as the body's, at the same angle.

    Raises: InputError for another name, or a body that is missing or does not serve.
    """
    if how not in FITS:
        raise InputError(f"the fit {how!r} is not known; use {', '.join(FITS)}.")
    if how == "none":
        return poses
    if body is None:
        raise InputError(f"the fit {how} needs a body: keypoints, a picture or a clip of the person.")
    return fit_affine(poses, body) if how == "affine" else fit_bones(poses, body)


def fit_affine(poses: PoseSequence, body: Body) -> PoseSequence:
    """One enlargement and shift for the whole clip, by least squares of the heights of head, torso and legs.

    Raises: InputError if only the body's lengths are known, or too few points are seen in both.
    Source: MimicMotion, `dwpose/preprocess.py` (its scales of x and y are one scale in pixels).
    """
    if body.standing is None:
        raise InputError("the fit affine needs a picture or clip of the person, not only bone lengths; use bones.")
    wanted = _mean_place(body.standing)
    seen = (poses.body[..., 2] > SEEN) & (wanted[:, 2] > SEEN)
    seen[:, [joint for joint in range(BODY) if joint not in _ALIGNED]] = False
    x, y = poses.body[..., 0][seen], poses.body[..., 1][seen]
    target = np.broadcast_to(wanted, poses.body.shape)[seen]
    spread = np.var(y) if y.size else 0.0
    factor = float(np.mean((y - y.mean()) * (target[:, 1] - target[:, 1].mean())) / spread) if spread else 0.0
    if factor <= 0:
        raise InputError("the fit affine finds too few points of head, torso and legs in both; use bones.")
    shift = (float(np.mean(target[:, 0] - x * factor)), float(np.mean(target[:, 1] - y * factor)))
    return poses.moved(factor, shift, (body.standing.height, body.standing.width))


def bone_ratios(poses: PoseSequence, body: Body) -> NDArray[np.float64]:
    """How much longer each bone becomes, (17,): the body's length over the driver's, relative to the median of these.

    So the sizes of both pictures do not matter. A bone that is not seen in both takes the median, which is 1 then; the
    others are clipped to `RATIO`.

    Raises: InputError if no bone is seen in both.
    """
    ratios = body.lengths / bone_lengths(poses)
    if np.isnan(ratios).all():
        raise InputError("the poses and the body show no bone in common; give a body that shows the same limbs.")
    relative = ratios / np.nanmedian(ratios)
    return np.where(np.isnan(relative), 1.0, relative.clip(*RATIO))


def fit_bones(poses: PoseSequence, body: Body) -> PoseSequence:
    """Every bone at the body's proportions, under the driver's angles, as a tree rooted at the neck.

    A point whose parent is missing hangs on the nearest ancestor that is seen. Hands move with the wrists at the
    forearm's ratio, the face with the nose at that of eyes and ears. The hips follow the driver's path scaled by leg
    length, and the lower foot keeps its height above the clip's lowest, scaled alike: feet stand where they stood.

    Raises: InputError if no bone is seen in both.
    """
    ratios = bone_ratios(poses, body)
    old = poses.body
    new = _rebuilt(old, ratios)
    lengths = np.nan_to_num(bone_lengths(poses)[list(_LEGS)])
    legs = float(ratios[list(_LEGS)] @ lengths / lengths.sum()) if lengths.any() else 1.0
    shift = _shift(old, new, legs)
    new[..., :2] += shift[:, None] * (new[..., 2:] > 0)
    whole = poses.whole
    whole[:, :BODY] = new
    for side, wrist in enumerate(_WRISTS):
        part = slice(BODY + side * HAND, BODY + (side + 1) * HAND)
        whole[:, part] = _carried(whole[:, part], old[:, wrist], new[:, wrist], shift, float(ratios[BONE_TO[wrist]]))
    face = slice(BODY + 2 * HAND, None)
    ratio = float(ratios[list(_FACE_BONES)].mean())
    whole[:, face] = _carried(whole[:, face], old[:, _NOSE], new[:, _NOSE], shift, ratio)
    return poses.with_points(whole)


def _rebuilt(old: Points, ratios: NDArray[np.float64]) -> Points:
    """The bodies (T, 18, 3) with each bone at its ratio; what has no seen ancestor stays where it is."""
    new = old.copy()
    seen = old[..., 2] > SEEN
    for _, joint in BONES:
        chain = ancestors(joint)
        hung = np.zeros(len(old), dtype=bool)
        for steps, ancestor in enumerate(chain, start=1):
            path = [BONE_TO[joint], *(BONE_TO[passed] for passed in chain[: steps - 1])]
            here = seen[:, joint] & seen[:, ancestor] & ~hung
            ratio = ratios[path].mean()
            new[here, joint, :2] = new[here, ancestor, :2] + ratio * (old[here, joint, :2] - old[here, ancestor, :2])
            hung |= here
    return new


def _shift(old: Points, new: Points, legs: float) -> Shift:
    """How far each frame's figure moves, (T, 2), so that hips and feet stand as `fit_bones` says."""
    seen = old[..., 2] > SEEN
    shift = np.zeros((len(old), 2))
    hips: NDArray[np.bool_] = np.all(seen[:, _HIPS], axis=1)
    feet: NDArray[np.bool_] = np.any(seen[:, _ANKLES], axis=1)
    if hips.any():
        path, placed = old[:, _HIPS, :2].mean(axis=1), new[:, _HIPS, :2].mean(axis=1)
        middle = path[hips].mean(axis=0)
        shift = _over_time(middle + legs * (path - middle) - placed, hips)
    if feet.any():
        lowest, placed_lowest = (_lowest(points, seen) for points in (old, new))
        ground = lowest[feet].max()
        shift[:, 1] = _over_time((ground - legs * (ground - lowest) - placed_lowest)[:, None], feet)[:, 0]
    return shift


def _lowest(points: Points, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The larger y of the ankles that are seen, (T,); -inf becomes 0 where none is."""
    y: NDArray[np.float64] = np.where(seen[:, _ANKLES], points[:, _ANKLES, 1], -np.inf).max(axis=1)
    return np.where(np.isfinite(y), y, 0.0)


def _over_time(values: Shift, known: NDArray[np.bool_]) -> Shift:
    """Values (T, N) as they are where known, on a line between these elsewhere, constant before and after."""
    frames = np.arange(len(values))
    return np.stack([np.interp(frames, frames[known], column[known]) for column in values.T], axis=1)


def _carried(points: Points, old: Points, new: Points, shift: Shift, ratio: float) -> Points:
    """Points (T, N, 3) of a hand or face around the joint (T, 3) that carries them; shifted where it is not seen."""
    held = (old[:, 2] > SEEN)[:, None, None]
    around = new[:, None, :2] + ratio * (points[..., :2] - old[:, None, :2])
    result = points.copy()
    result[..., :2] = np.where(held, around, points[..., :2] + shift[:, None])
    return result


def _mean_place(poses: PoseSequence) -> Points:
    """Where each point of the body is on the mean over the frames that show it, (18, 3); score 0 for one never seen."""
    seen = poses.body[..., 2] > SEEN
    count = seen.sum(axis=0)
    total = (poses.body[..., :2] * seen[..., None]).sum(axis=0)
    place = np.zeros((BODY, 3))
    place[:, :2] = total / np.maximum(count, 1)[:, None]
    place[:, 2] = count > 0
    return place
