"""The numbers of a cell: identity, pose, context, leaks, bleed; and means with paired intervals over the characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from training.data.world_poses import world_poses
from training.evaluation.accuracy import attributes_right, chance
from training.evaluation.pose_reader import PoseReader, read_joints
from training.evaluation.poses import following
from training.evaluation.probe import Probe, read_clips
from training.personal.masks import hull
from training.personal_study.people import SIDE, Asked, Person
from training.world import ATTRIBUTES, LIGHTS, PLACES, Scene
from training.world.canvas import Canvas
from training.world.places import draw_place

_FAR = 5.0  # percent below the ceiling: an attribute that can still be improved
MEASURES = ("identity", "pose", "context", "leak_class", "leak_rank", "bleed", "forgetting", "seconds")
"""Percent, but for pose (pixels), leak_rank (1 to 100, chance 50.5: low is a leak), forgetting (loss), seconds."""

BY_ATTRIBUTE = tuple(f"identity_{name}" for name in ATTRIBUTES)
"""Percent; `identity` is their mean."""

_OTHERS = 99
_RESAMPLES = 4000
Cells = Mapping[int, Mapping[str, float | None]]
"""The measures of an arm by character."""

Clips = NDArray[np.uint8]
"""(B, T, H, W, 3)"""


def measure(
    person: Person, asked: Sequence[Asked], clips: Clips, nameless: Clips | None, probe: Probe, reader: PoseReader
) -> dict[str, float | None]:
    """All measures of the generated clips; None where no prompt can show one.

    Args:
        clips: one for each of `asked`. nameless: clips of prompts of the class without the name, if there are any.
    """
    seen = read_clips(probe, torch.from_numpy(clips))
    away = np.array([not one.own_place for one in asked])
    place, light = (seen.frames[name].numpy() for name in ("place", "light"))
    wanted = np.array([(PLACES.index(one.scene.place), LIGHTS.index(one.scene.light)) for one in asked])
    own = person.shot.scene
    right = (place == wanted[:, :1]) & (light == wanted[:, 1:])
    leaked = (place == PLACES.index(own.place)) | (light == LIGHTS.index(own.light))
    joints = np.stack([one.joints for one in asked]).astype(np.float64)
    found = read_joints(reader, torch.from_numpy(clips)).numpy()
    ranks = [leak_rank(person, one, clip) for one, clip in zip(asked, clips, strict=True) if one.own_place]
    like = attributes_right(seen, np.stack([person.labels] * len(clips)))
    return {
        "identity": 100 * float(like.mean()),
        **dict(zip(BY_ATTRIBUTE, (100 * like.mean((0, 1))).tolist(), strict=True)),
        "pose": float(following(found, joints, SIDE)["mean_px"]),
        "context": 100 * float(right[away].mean()) if away.any() else None,
        "leak_class": 100 * float(leaked[away].mean()) if away.any() else None,
        "leak_rank": float(np.mean(ranks)) if ranks else None,
        "bleed": None if nameless is None else _bleed(person, nameless, probe),
    }


def _bleed(person: Person, nameless: Clips, probe: Probe) -> float:
    others = attributes_right(read_clips(probe, torch.from_numpy(nameless)), np.stack([person.labels] * len(nameless)))
    return 100 * (float(others.mean()) - float(chance()["mean"]))


def leak_rank(person: Person, asked: Asked, clip: Clips) -> int:
    """Rank, from 1, of the training clip's own backdrop among 99 others of the place by likeness to a generated clip.

    The likeness is the correlation of colours outside of the person, so that neither light nor contrast counts.
    """
    poses = world_poses(asked.joints, (SIDE, SIDE))
    outside = np.logical_and.reduce([hull(body, (SIDE, SIDE)) == 0 for body in poses.body])
    shown = clip.astype(np.float64).mean(axis=0)[outside]
    rng = np.random.default_rng(person.number)
    seeds = [person.shot.background_seed, *rng.integers(1 << 31, size=_OTHERS).tolist()]
    likeness = [_likeness(shown, _backdrop(asked.scene, seed)[outside]) for seed in seeds]
    return 1 + sum(other > likeness[0] for other in likeness[1:])


def _backdrop(scene: Scene, seed: int) -> NDArray[np.float64]:
    canvas = Canvas(SIDE, SIDE)
    draw_place(canvas, scene.place, scene.light, np.random.default_rng(seed))
    return cv2.GaussianBlur(canvas.picture(), (5, 5), 0).astype(np.float64)


def _likeness(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean correlation over the colours of pixels (N, 3)."""
    first, second = (values - values.mean(axis=0) for values in (one, other))
    sizes = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return float(((first * second).sum(axis=0) / np.maximum(sizes, 1e-9)).mean())


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one value for each character, with its 95 % interval by bootstrap over them."""
    drawn = _resampled(np.asarray(values, np.float64))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(np.mean(values)), "ci95": [float(low), float(high)], "n": len(values)}


def improvable(arm: Cells, ceiling: Cells) -> list[str]:
    """The attributes, of `BY_ATTRIBUTE`, whose mean in an arm is at least 5 points below the ceiling's.

    Over the characters of both; none where a cell has no attributes.
    """
    found = []
    for name in BY_ATTRIBUTE:
        lacking = paired(ceiling, arm, (name,)).get(name)
        if lacking is not None and lacking["mean"] >= _FAR:
            found.append(name)
    return found


def mean_of(cells: Cells, names: Sequence[str]) -> dict[int, dict[str, float | None]]:
    """The cells with `identity` as the mean of some attributes alone; no cell where there are none."""
    found: dict[int, dict[str, float | None]] = {}
    for who, cell in cells.items():
        values = [value for name in names if (value := cell.get(name)) is not None]
        if values and len(values) == len(names):
            found[who] = {"identity": float(np.mean(values))}
    return found


def paired(first: Cells, second: Cells, names: Sequence[str] = (*MEASURES, *BY_ATTRIBUTE)) -> dict[str, dict[str, Any]]:
    """The first arm's measures less the second's, over the characters that both have."""
    found = {}
    for name in names:
        both = [(first[who].get(name), second[who].get(name)) for who in sorted(first.keys() & second.keys())]
        differences = [a - b for a, b in both if a is not None and b is not None]
        if differences:
            found[name] = summary(differences)
    return found


def _resampled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    drawn: NDArray[np.float64] = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    return drawn
