"""How well clips follow their pose: where the pose reader finds the joints, against where the pose has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contextanyone_core.media.image_io import frames_to_images, images_to_frames, picture_to_images
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.pose.body import BONES, body_of, bone_lengths
from contextanyone_core.pose.drawing import STYLES, draw_poses
from contextanyone_core.pose.fitting import fit_bones
from contextanyone_core.pose.sequence import PoseSequence
from contextanyone_core.prompts import TwoStagePrompt
from training.data.world_poses import world_poses
from training.evaluation.accuracy import attributes_right, confidence, confidence_of_share, summary
from training.evaluation.characters import Motion, Subject, neighbour, subjects
from training.evaluation.clips import ClipMaker, Clips
from training.evaluation.fidelity import vae_round_trip
from training.evaluation.pose_reader import PoseReader, read_joints
from training.evaluation.probe import Probe, read_clips
from training.world import KEYPOINTS, neutral_prompts

_NEAR = 0.05  # of the figure's height
_CEILING = 16  # clips through the VAE
_LIMBS = [index for index, ends in enumerate(BONES) if max(ends) < len(KEYPOINTS)]  # the bones that the world draws
Joints = NDArray[np.float64]
"""(characters, frames, 14, 2), pixels."""


@dataclass(frozen=True)
class Driven:
    """Characters, and the pose that each one's clip is to follow."""

    chosen: list[Subject]
    poses: list[PoseSequence]

    @property
    def joints(self) -> Joints:
        """Where the poses have the world's joints."""
        return np.stack([poses.body[:, : len(KEYPOINTS), :2] for poses in self.poses])


def measure_poses(maker: ClipMaker, reader: PoseReader, probe: Probe, seed: int, count: int) -> dict[str, Any]:
    """The numbers `pose` and `start` of metrics.json, each row on `count` test characters of a seed.

    Rows: the pose of the asked action, of a free motion and of a held-out one; another body's, fitted to the character
    (bodies measured in a seated clip apart); and the controls: another clip's pose, and none, against the asked one.
    """
    size, length = maker.settings.size, maker.settings.num_frames
    rows: dict[str, Any] = {}
    asked = driven_by_own(subjects(seed, count, size, length, "asked"))
    ceiling = np.stack([vae_round_trip(maker.pipeline.vae, subject) for subject in asked.chosen[:_CEILING]])
    rows["ceiling"] = _following(reader, ceiling, asked.joints[:_CEILING])
    rows["asked"] = _following(reader, _clips(maker, asked.chosen, asked.poses), asked.joints)
    motions: tuple[Motion, ...] = ("free", "held_out")
    for motion in motions:
        driven = driven_by_own(subjects(seed, count, size, length, motion))
        rows[motion] = _following(reader, _clips(maker, driven.chosen, driven.poses), driven.joints)
    others = [asked.poses[(index + 1) % count] for index in range(count)]
    rows["another_clip"] = _following(reader, _clips(maker, asked.chosen, others), asked.joints)
    rows["none"] = _following(reader, _clips(maker, asked.chosen, None), asked.joints)
    rows |= _other_bodies(maker, reader, probe, subjects(seed, 2 * count, size, length, "asked"), count)
    return {"pose": rows, "start": _seam(maker, asked.chosen) | {"n": count}}


def driven_by_own(chosen: list[Subject]) -> Driven:
    """The poses of the characters' own rendered clips."""
    return Driven(chosen, [_poses(subject) for subject in chosen])


def driven_by_others(chosen: Sequence[Subject], drivers: Sequence[Subject]) -> Driven:
    """The drivers' poses, with the bones that each character has in its own clip."""
    fitted = [
        fit_bones(_poses(driver), body_of(_poses(subject))) for subject, driver in zip(chosen, drivers, strict=True)
    ]
    return Driven(list(chosen), fitted)


def _poses(subject: Subject) -> PoseSequence:
    return world_poses(subject.drawn.keypoints, (subject.size, subject.size))


def _other_bodies(
    maker: ClipMaker, reader: PoseReader, probe: Probe, chosen: list[Subject], count: int
) -> dict[str, Any]:
    """Rows `other_body`, on characters whose clip shows them standing, and `other_body_seated`, on the others."""
    drivers = {subject.seed: neighbour(index, chosen) for index, subject in enumerate(chosen)}
    rows: dict[str, Any] = {}
    for name, seated in (("other_body", False), ("other_body_seated", True)):
        some = [subject for subject in chosen if (subject.drawn.scene.action == "sitting") == seated][:count]
        if not some:
            continue
        driven = driven_by_others(some, [drivers[subject.seed] for subject in some])
        clips = _clips(maker, some, driven.poses, [_does_as(subject, drivers[subject.seed]) for subject in some])
        rows[name] = _following(reader, clips, driven.joints)
        if not seated:
            labels = np.stack([subject.labels for subject in some])
            rows[name]["attributes"] = summary(attributes_right(read_clips(probe, torch.from_numpy(clips)), labels))
            found = read_joints(reader, torch.from_numpy(clips)).numpy()
            rows[name]["bones"] = _whose_bones(found, some, [drivers[subject.seed] for subject in some])
    return rows


def _does_as(subject: Subject, driver: Subject) -> TwoStagePrompt:
    """The character's own prompts, with the action that the driver's pose shows: nobody asks for a dance by a walk."""
    scene = replace(subject.drawn.scene, action=driver.drawn.scene.action)
    return TwoStagePrompt(*neutral_prompts(scene))


def _clips(
    maker: ClipMaker,
    chosen: Sequence[Subject],
    poses: Sequence[PoseSequence] | None,
    prompts: Sequence[TwoStagePrompt] | None = None,
) -> Clips:
    """Clips of the characters, with a pose each or without; without prompts they have their own (`Subject.neutral`)."""
    pipeline, size = maker.pipeline, (maker.settings.size, maker.settings.size)
    style = STYLES[pipeline.config.pose_style]
    given: list[VideoCondition | None] = [None] * len(chosen)
    if poses is not None:
        drawn = [frames_to_images(draw_poses(item, style)).to(pipeline.device) for item in poses]
        given = [pipeline.encode_condition(images, None, size) for images in drawn]
    return _generate(maker, chosen, given, prompts or [subject.neutral for subject in chosen])


def _generate(
    maker: ClipMaker,
    chosen: Sequence[Subject],
    given: Sequence[VideoCondition | None],
    prompts: Sequence[TwoStagePrompt],
) -> Clips:
    made, size = [], maker.settings.batch_size
    requests = list(zip(chosen, given, prompts, strict=True))
    for start in range(0, len(chosen), size):
        batch = chosen[start : start + size]
        conditions = [
            replace(maker.pipeline.conditions([maker.encode(subject)], prompt), video=condition)
            for subject, condition, prompt in requests[start : start + size]
        ]
        seeds = [subject.seed for subject in batch]
        made.append(maker.generate(conditions, seeds, "pose", maker.settings.generation()))
    return np.concatenate(made)


def _following(reader: PoseReader, clips: Clips, joints: Joints) -> dict[str, Any]:
    """Mean distance of the joints, and the share within 5 % of the figure's height, with its interval over clips."""
    return following(read_joints(reader, torch.from_numpy(clips)).numpy(), joints, clips.shape[2])


def following(found: NDArray[np.float32], joints: Joints, side: int) -> dict[str, Any]:
    """As `measure_poses` has each row; joints outside the frame do not count.

    The figure's height is from the middle of its head to its lowest joint, where that is largest.
    """
    distance = np.linalg.norm(found - joints, axis=-1)
    inside = ((joints >= 0) & (joints < side)).all(axis=-1)
    height = (joints[..., 1].max(axis=2) - joints[..., 1].min(axis=2)).max(axis=1)
    near = (distance <= _NEAR * height[:, None, None]) & inside
    low, high = confidence_of_share(near.sum(axis=(1, 2)), inside.sum(axis=(1, 2)))
    return {
        "mean_px": float(distance[inside].mean()),
        "within_5_percent": float(near.sum() / inside.sum()),
        "ci95": [low, high],
        "n": len(found),
    }


def _whose_bones(
    found: NDArray[np.float32], chosen: Sequence[Subject], drivers: Sequence[Subject]
) -> dict[str, float | dict[str, Any]]:
    """How far the clips' bone lengths are off the characters' own and off their drivers', and how much farther.

    `driver_less_reference` is the difference with its interval over the characters: above 0 the clips have the
    characters' bones, and not the drivers'.
    """
    own, others = _bones_off(found, chosen), _bones_off(found, drivers)
    low, high = confidence(others - own)
    farther = {"mean": float((others - own).mean()), "ci95": [low, high]}
    return {"reference": float(own.mean()), "driver": float(others.mean()), "driver_less_reference": farther}


def _bones_off(found: NDArray[np.float32], bodies: Sequence[Subject]) -> NDArray[np.float64]:
    """(B,) mean difference of a clip's bone lengths from a body's, as a share, both as multiples of their median."""
    differences = []
    for joints, subject in zip(found, bodies, strict=True):
        shown = _proportions(world_poses(joints, (subject.size, subject.size)))
        differences.append(np.nanmean(np.abs(shown / _proportions(_poses(subject)) - 1.0)))
    return np.asarray(differences, np.float64)


def _proportions(poses: PoseSequence) -> NDArray[np.float64]:
    lengths = bone_lengths(poses)[_LIMBS]
    return np.asarray(lengths / np.nanmedian(lengths), np.float64)


def _seam(maker: ClipMaker, chosen: Sequence[Subject]) -> dict[str, float]:
    """How a clip goes on from its start picture, in mean differences between its neighbouring frames.

    `seam_ratio`: frame 0 from the start picture through the VAE. It is 0 whatever the network makes, since generation
    gives the first frame the start's own latents (`lead_to_start`): anything else is a fault of that, no measure of the
    network. `first_step_ratio`, which is one: frame 1 from frame 0; 1 is a clip that leaves its first frame as it goes
    from any frame to the next, renderings have 1.2.
    """
    pipeline, size = maker.pipeline, (maker.settings.size, maker.settings.size)
    starts = [picture_to_images(subject.drawn.video[0]).to(pipeline.device) for subject in chosen]
    given = [pipeline.encode_condition(None, start, size) for start in starts]
    clips = _generate(maker, chosen, given, [subject.neutral for subject in chosen])
    trips = [images_to_frames(pipeline.vae.decode(pipeline.vae.encode(start[:, :, None])).cpu())[0] for start in starts]
    seam = np.abs(clips[:, 0].astype(np.float64) - np.stack(trips)).mean()
    steps = np.abs(np.diff(clips.astype(np.float64), axis=1)).mean(axis=(0, 2, 3, 4))
    mean = max(float(steps.mean()), 1e-6)
    return {"seam_ratio": float(seam) / mean, "first_step_ratio": float(steps[0]) / mean}
