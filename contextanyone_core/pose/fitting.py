"""Fitting poses to another body, so that the character does not take on the driving person's proportions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .body import BONE_TO, BONES, ROOT, Body, ancestors, bone_lengths
from .sequence import BODY, BODY_18, HAND, SEEN, Points, PoseSequence

# Paper: AnimateAnywhere does not say whose proportions its pose videos have, the driver's or the character's.
FITS = ("none", "affine", "bones")
RATIO = (0.5, 2.0)
"""Ratios of bone lengths are clipped to this, after their median is divided out."""

_NOSE, _WRISTS, _HIPS, _ANKLES = 0, (7, 4), (8, 11), (10, 13)  # wrists in the order of the hands: left, right
_LEGS = (7, 8, 10, 11)  # bones
_MARGIN = 0.01  # fraction of the canvas
_FACE_BONES = (13, 14, 15, 16)
_NECK_BESIDE = ((2, 5), (2,), (5,), (8, 11), (8,), (11,), (_NOSE,))
"""Joints that an unseen neck is placed by: the first of these sets that a frame shows."""
_BY_ITSELF = 3  # the first sets (shoulders) are taken as the neck's own place if no frame shows the neck with them
_ALIGNED = (0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)  # arms are excluded: they move too much
Shift = NDArray[np.float64]


def fit(poses: PoseSequence, body: Body | None, how: str) -> PoseSequence:
    """Fit poses to another body; if points leave the canvas by that, the result has a remark.

    Args:
        how: `none`, unchanged; `affine`, one scale and shift for all frames, onto the picture or clip of the body and
            its canvas; `bones`, each bone with the body's proportions at the same angle.

    Raises: InputError for another name, or a body that is missing or unsuitable.
    """
    if how not in FITS:
        raise InputError(f"the fit {how!r} is not known; use {', '.join(FITS)}.")
    if how == "none":
        return poses
    if body is None:
        raise InputError(f"the fit {how} needs a body: keypoints, a picture or a clip of the person.")
    fitted = fit_affine(poses, body) if how == "affine" else fit_bones(poses, body)
    return fitted.remarked(_left_out(poses, fitted))


def fit_affine(poses: PoseSequence, body: Body) -> PoseSequence:
    """One scale and shift for the whole clip, by least squares over the heights of head, torso and legs.

    Raises: InputError if only the body's lengths are known, or too few points are visible in both.
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
    """Scale of each bone, (17,): the body's length over the driver's, divided by the median of these ratios.

    The division removes the sizes of both pictures. A bone that is not visible in both has the ratio 1; the others are
    clipped to `RATIO`.

    Raises: InputError if no bone is visible in both.
    """
    ratios = body.lengths / bone_lengths(poses)
    if np.isnan(ratios).all():
        raise InputError("the poses and the body show no bone in common; give a body that shows the same limbs.")
    relative = ratios / np.nanmedian(ratios)
    return np.where(np.isnan(relative), 1.0, relative.clip(*RATIO))


def fit_bones(poses: PoseSequence, body: Body) -> PoseSequence:
    """Give every bone the body's proportions at the driver's angles, in a kinematic tree rooted at the neck.

    A point whose parent is missing is attached to the nearest visible ancestor. An unseen neck is estimated, so that
    the limbs attached to it keep their proportions, and stays unseen. Hands follow the wrists, scaled as the forearm;
    the face follows the nose, scaled as eyes and ears. The hips follow the driver's path, and the lower foot its height
    above the clip's lowest point, both scaled by leg length: so standing feet stay on the ground.

    Raises: InputError if no bone is visible in both.
    """
    ratios = bone_ratios(poses, body)
    old = poses.body
    new = _rebuilt(_with_necks(old), ratios)
    new[:, ROOT] = np.where(old[:, ROOT, 2:] > SEEN, new[:, ROOT], old[:, ROOT])
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


def _left_out(poses: PoseSequence, fitted: PoseSequence) -> str:
    """A remark if a fit moves points of the body out of the picture, else empty."""
    gone = _outside(fitted) & ~_outside(poses)
    frames = int(gone.any(axis=1).sum())
    if not frames:
        return ""
    most = BODY_18[int(gone.sum(axis=0).argmax())].replace("_", " ")
    return (
        f"fitted to the body, the figure leaves the picture in {frames} of {len(gone)} frames, most often with the "
        f"{most}; poses with more room around, or another fit, keep all of it"
    )


def _outside(poses: PoseSequence) -> NDArray[np.bool_]:
    """Which visible points of the body lie off the canvas by more than a hundredth of it, (T, 18)."""
    shares = poses.body[..., :2] / (poses.width, poses.height)
    off: NDArray[np.bool_] = (np.abs(shares - 0.5) > 0.5 + _MARGIN).any(axis=-1) & (poses.body[..., 2] > SEEN)
    return off


def _rebuilt(old: Points, ratios: NDArray[np.float64]) -> Points:
    """The bodies (T, 18, 3) with scaled bones; a point without a visible ancestor does not move."""
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


def _with_necks(old: Points) -> Points:
    """The bodies (T, 18, 3) with the neck estimated where it is not seen; in COCO's keypoints both shoulders define it.

    Its offset from a visible joint is interpolated from frames that show both; without any, it stays unseen.
    """
    bodies = old.copy()
    seen = old[..., 2] > SEEN
    known = seen[:, ROOT].copy()
    for rank, joints in enumerate(_NECK_BESIDE):
        shown: NDArray[np.bool_] = np.all(seen[:, joints], axis=1)
        place = old[:, joints, :2].mean(axis=1)
        if (both := known & shown).any():
            place += _over_time(bodies[:, ROOT, :2] - place, both)
        elif rank >= _BY_ITSELF:
            continue
        new = shown & ~known
        bodies[new, ROOT] = np.concatenate([place[new], np.ones((int(new.sum()), 1))], axis=1)
        known |= new
    return bodies


def _shift(old: Points, new: Points, legs: float) -> Shift:
    """Shift of the figure in each frame, (T, 2), that places hips and feet as `fit_bones` describes."""
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
    """The larger y of the visible ankles, (T,); 0 if neither is visible."""
    y: NDArray[np.float64] = np.where(seen[:, _ANKLES], points[:, _ANKLES, 1], -np.inf).max(axis=1)
    return np.where(np.isfinite(y), y, 0.0)


def _over_time(values: Shift, known: NDArray[np.bool_]) -> Shift:
    """Values (T, N) with unknown ones interpolated linearly over time, and constant beyond the known range."""
    frames = np.arange(len(values))
    return np.stack([np.interp(frames, frames[known], column[known]) for column in values.T], axis=1)


def _carried(points: Points, old: Points, new: Points, shift: Shift, ratio: float) -> Points:
    """Points (T, N, 3) of a hand or face, scaled around the joint (T, 3) they follow; only shifted if it is missing."""
    held = (old[:, 2] > SEEN)[:, None, None]
    around = new[:, None, :2] + ratio * (points[..., :2] - old[:, None, :2])
    result = points.copy()
    result[..., :2] = np.where(held, around, points[..., :2] + shift[:, None])
    return result


def _mean_place(poses: PoseSequence) -> Points:
    """Mean position of each point of the body over the frames that show it, (18, 3); score 0 if none does."""
    seen = poses.body[..., 2] > SEEN
    count = seen.sum(axis=0)
    total = (poses.body[..., :2] * seen[..., None]).sum(axis=0)
    place = np.zeros((BODY, 3))
    place[:, :2] = total / np.maximum(count, 1)[:, None]
    place[:, 2] = count > 0
    return place
