"""The person's pose in every frame of the clip: given, estimated, or read off drawn people."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from contextanyone_core.pose.estimation import estimated
from contextanyone_core.pose.litert import DOWNLOAD
from contextanyone_core.pose.reading import PoseSource, read_poses
from contextanyone_core.pose.resample import at_places
from contextanyone_core.pose.sequence import SEEN, PoseSequence
from training.data.media import probe
from training.data.world_poses import world_poses
from training.evaluation.pose_reader import find_joints, load_pose_reader
from training.personal.shot import Shot
from training.settings import MINIATURE

_LOG = logging.getLogger(__name__)
_SURE = 0.8
"""How sure the pose reader is at least of a frame with somebody: 0.99 on the world's renderings, without a person in
them, on noise and on photographs 0.35 to 0.7."""
_ALONE = 0.94
"""The same of the median frame with somebody: 0.97 and more of one of the world's people alone, 0.8 to 0.91 of two, of
whom it then finds some joints each."""
_FRAMES_OFF = 2.0  # of the lower rate, by which given poses may be shorter or longer than the clip
ENOUGH = 6
"""Joints that a frame must show to be trained on as a picture."""


def poses_of_shot(shot: Shot, given: Path | None, models: Path | None, *, drawn: bool) -> PoseSequence:
    """The poses of a shot's frames, in pixels of the clip.

    Args:
        given: a file of keypoints of the whole clip, one for each frame or as many as its rate makes of its length.
        models: MediaPipe's, for the estimator.
        drawn: the clip shows the character world, and the miniature's pose reader is taken.

    Raises:
        InputError: nobody or several people are found, a file does not fit the clip, or nothing gives poses.
        MissingDependencyError: the extra `pose` is not installed.
    """
    if given is not None:
        poses = _given(shot, given)
    elif drawn:
        poses = _read_off(shot)
    elif models is not None:
        from contextanyone_core.pose.blazepose import BlazePose

        poses = replace(estimated(shot.frames(), shot.fps, BlazePose(models)), fps=shot.fps)
    else:
        raise InputError(
            "poses are needed: give --pose FILE with keypoints, or --models PATH for the estimator, MediaPipe's wheel "
            f"({DOWNLOAD})."
        )
    if not (poses.body[..., 2] > SEEN).any():
        drawn_only = "--preset miniature knows drawn people of its own world, one alone: take another preset for others"
        advice = drawn_only if drawn else "film one person, head to feet, in even light"
        raise InputError(f"{shot.path} shows nobody whom the estimator finds in any of its frames; {advice}.")
    return poses


def _given(shot: Shot, path: Path) -> PoseSequence:
    choose = "crop the clip to one, or take the person out: contextanyone pose FILE --person 1 --out one.json"
    read = read_poses(path, PoseSource(picture=(shot.height, shot.width), choose=choose))
    poses = _on_the_clip(read, shot, path)
    if poses.num_frames != shot.total:
        poses = _at_the_clips_times(poses, shot, path)
    return replace(poses.at(range(shot.start, shot.stop)), fps=shot.fps)


def _on_the_clip(poses: PoseSequence, shot: Shot, path: Path) -> PoseSequence:
    """Poses of a smaller or larger copy of the clip, whose sides may be rounded, in pixels of the clip."""
    if (poses.width, poses.height) == (shot.width, shot.height):
        return poses
    factor = min(shot.width / poses.width, shot.height / poses.height)
    beside = max(shot.width - factor * poses.width, shot.height - factor * poses.height)
    if beside > max(1.0, factor):  # a pixel of the smaller one
        raise InputError(
            f"--pose {path}: the poses lie on {poses.width} x {poses.height}, the clip is {shot.width} x {shot.height} "
            "pixels; give poses of the whole picture, neither cropped nor padded."
        )
    return poses.placed((shot.height, shot.width))


def _at_the_clips_times(poses: PoseSequence, shot: Shot, path: Path) -> PoseSequence:
    """A pose for each frame of the clip, of poses at another rate that last as long as the clip."""
    times = np.asarray(probe(shot.path).times)
    times -= times[0]
    seconds = (poses.num_frames - 1) / poses.fps
    if abs(times[-1] - seconds) > _FRAMES_OFF / min(poses.fps, shot.fps):
        raise InputError(
            f"--pose {path} has {poses.num_frames} frames at {poses.fps:g} a second, {seconds:.2f} s, the clip "
            f"{shot.total}, {times[-1]:.2f} s; give poses of the whole clip, at the rate that the file states, or one "
            "for each frame."
        )
    _LOG.info("%s has %d frames at %g a second; resampled to the clip's.", path, poses.num_frames, poses.fps)
    return at_places(poses, times * poses.fps, shot.fps)


def _read_off(shot: Shot) -> PoseSequence:
    if shot.width != shot.height:
        raise InputError(
            f"{shot.path} has {shot.width} x {shot.height} pixels; the miniature reads poses off square clips: crop "
            "it, or give --pose."
        )
    frames = torch.from_numpy(np.stack(list(shot.frames())))[None]
    joints, sure = find_joints(load_pose_reader(MINIATURE / "pose_reader.safetensors"), frames)
    poses = world_poses(joints[0].numpy(), (shot.height, shot.width))
    shown = (sure[0] >= _SURE).numpy()
    if shown.any() and np.median(sure[0].numpy()[shown]) < _ALONE:
        raise InputError(
            f"{shot.path} shows several people, or none of the miniature's world: the pose reader is not sure of one; "
            "crop it to one, or give --pose of one."
        )
    return replace(poses, body=poses.body * shown[:, None, None], fps=shot.fps)


def seen_enough(poses: PoseSequence) -> NDArray[np.bool_]:
    """Which frames show enough of the person, (T,)."""
    counts: NDArray[np.int64] = (poses.body[..., 2] > SEEN).sum(axis=1)
    return counts >= ENOUGH
