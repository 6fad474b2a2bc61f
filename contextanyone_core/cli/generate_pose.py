"""Pose and start frame of `contextanyone generate`: read and checked before torch, drawn and encoded by the model."""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..media.image_io import read_shown
from ..media.video_io import FPS
from ..pose.drawing import STYLES
from ..pose.driving import DrivingPose, default_fit, driven_by
from ..pose.fitting import FITS
from ..pose.reading import PoseSource, is_keypoints, read_poses
from .parsing import Parser, file_path, one_of, real, whole
from .pose_inputs import read_body, read_drawn, require_content, warn_without_skeleton

if TYPE_CHECKING:
    from ..generation.pipeline import ContextAnyonePipeline
    from ..generation.vace import VacePipeline
    from ..model.condition import VideoCondition

_log = logging.getLogger(__name__)
_MAX_STRENGTH = 100.0
_WITH_POSE = ("fit", "body", "models", "person", "fps", "strength", "start", "end")
_FOR_KEYPOINTS = ("fit", "body", "models", "person")


@dataclass(frozen=True)
class AskedCondition:
    """What the video shall follow: poses, cut to its frames and placed on its canvas, and a start frame."""

    pose: DrivingPose | None = None
    start: NDArray[np.uint8] | None = None

    @property
    def asked(self) -> bool:
        """Whether there is any."""
        return not (self.pose is None and self.start is None)


def add_pose_options(parser: Parser) -> None:
    """Options for the poses of the video and its first frame."""
    add = parser.add_argument
    add(
        "--pose",
        type=file_path,
        metavar="FILE",
        help="poses to follow: OpenPose's JSON (file or folder), POSE_KEYPOINT, COCO, safetensors, or a drawn video",
    )
    add("--pose-fit", type=one_of("fit", *FITS), help=f"{', '.join(FITS)}; default: bones with --pose-body, else none")
    add(
        "--pose-body",
        type=file_path,
        metavar="FILE",
        help="whose body: keypoints, a picture or clip of the person, or a personal file",
    )
    add(
        "--pose-models",
        type=file_path,
        metavar="PATH",
        help="for a picture or clip of the person: the wheel mediapipe 0.10.21, or its folder",
    )
    add("--pose-person", type=whole(1, 999), metavar="N", help="which person, by number; needed if there are several")
    add(
        "--pose-fps",
        type=real(0, 1000, above=True),
        help=f"frames a second, where keypoints or a folder of pictures do not state it; default: {FPS}",
    )
    add(
        "--pose-strength",
        type=real(0, _MAX_STRENGTH),
        metavar="S",
        help="strength of the pose: 1 as trained (default), 0 none",
    )
    add("--pose-start", type=real(0, 1), metavar="SHARE", help="share of the steps from which the pose acts (0)")
    add("--pose-end", type=real(0, 1), metavar="SHARE", help="share of the steps up to which the pose acts (1)")
    add("--start-frame", type=file_path, metavar="PICTURE", help="the video's first frame, clean, of its aspect")


def pose_window(options: argparse.Namespace) -> tuple[float, float]:
    """The shares of the steps between which the pose acts."""
    start, end = options.pose_start, options.pose_end
    return 0.0 if start is None else start, 1.0 if end is None else end


def read_condition(options: argparse.Namespace) -> AskedCondition:
    """Read poses and start frame, the poses cut to the video's frames and placed on its canvas.

    Raises: InputError for what cannot be met.
    """
    start = None if options.start_frame is None else read_shown(options.start_frame)
    path: Path | None = options.pose
    if path is None:
        for name in _WITH_POSE:
            if getattr(options, f"pose_{name}") is not None:
                raise InputError(f"--pose-{name} belongs to --pose; give poses, or leave it out.")
        return AskedCondition(start=start)
    low, high = pose_window(options)
    if low > high:
        raise InputError(f"the pose acts from --pose-start {low:g} to --pose-end {high:g}; give the lower share first.")
    require_content(path, options.pose_body)
    if is_keypoints(path):
        return AskedCondition(_for_clip(_keypoints(options), options), start)
    for name in _FOR_KEYPOINTS:
        if getattr(options, f"pose_{name}") is not None:
            raise InputError(
                f"--pose-{name} is for keypoints, and {path} is a video of drawn poses; give keypoints, or leave "
                "it out."
            )
    if options.pose_fps is not None and not path.is_dir():
        raise InputError(f"{path} has its own rate; of drawn poses, --pose-fps is for a folder of pictures.")
    frames = read_drawn(path, options.size, options.pose_fps, options.frames)
    clip = _for_clip(DrivingPose(str(path), frames), options)
    warn_without_skeleton(path, frames)
    return AskedCondition(clip, start)


def encode_condition(
    pipeline: ContextAnyonePipeline | VacePipeline, asked: AskedCondition, size: tuple[int, int]
) -> VideoCondition | None:
    """Draw the poses in the model's style, and encode them and the start frame, once for all clips.

    Raises: InputError if the model has no channels for them, or the start frame has another aspect.
    """
    if not asked.asked:
        return None
    from ..media.image_io import frames_to_images, picture_to_images

    pose = None if asked.pose is None else frames_to_images(asked.pose.pictures(STYLES[pipeline.config.pose_style]))
    start = None if asked.start is None else picture_to_images(asked.start)
    ours = cast("ContextAnyonePipeline", pipeline)
    encoded = ours.encode_condition(pose, start, size)
    if not ours.transformer.patch_embedding.weight[:, ours.config.in_dim :].any():
        _log.warning("the condition channels of this model are untrained (zero): it follows no pose and no start frame")
    return encoded


def condition_record(options: argparse.Namespace) -> dict[str, Any]:
    """The entries of a clip's metadata for pose and start frame; nothing where there are none."""
    record: dict[str, Any] = {}
    if options.pose is not None:
        low, high = pose_window(options)
        body, strength = options.pose_body, options.pose_strength
        record["pose"] = file_record(options.pose) | {
            "fit": _fit(options),
            "body": None if body is None else file_record(body),
            "models": None if options.pose_models is None else file_record(options.pose_models),
            "person": options.pose_person,
            "fps": options.pose_fps,
            "strength": 1.0 if strength is None else strength,
            "start": low,
            "end": high,
        }
    if options.start_frame is not None:
        record["start_frame"] = file_record(options.start_frame)
    return record


def file_record(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a file, or of all files of a folder, one after the other in the order of their names."""
    total = hashlib.sha256()
    for part in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return {"name": path.name, "sha256": total.hexdigest()}


def _fit(options: argparse.Namespace) -> str:
    return str(options.pose_fit or default_fit(options.pose_body is not None))


def _keypoints(options: argparse.Namespace) -> DrivingPose:
    path: Path = options.pose
    if options.pose_body is not None and _fit(options) == "none":
        raise InputError("--pose-body is given and --pose-fit none ignores it; give one of them.")
    if options.pose_body is None and _fit(options) != "none":
        wanted = "keypoints, a picture or a clip of the person"
        raise InputError(f"--pose-fit {options.pose_fit} needs --pose-body FILE: {wanted}.")
    if options.pose_models is not None and options.pose_body is None:
        raise InputError("--pose-models estimates the body of --pose-body; give a picture or clip, or leave it out.")
    choose, rate = "choose one, such as --pose-person 1", "state it, such as --pose-fps 30"
    source = PoseSource(None, options.pose_fps, options.pose_person, choose, rate=rate, own_rate="leave --pose-fps out")
    read = read_poses(path, source)
    body = None
    if options.pose_body is not None:
        body = read_body(options.pose_body, options.pose_models, option="--pose-models")
    return driven_by(read, body, options.pose_fit, str(path))


def _for_clip(pose: DrivingPose, options: argparse.Namespace) -> DrivingPose:
    """Cut and placed for the clip; a cut and remarks are logged."""
    cut = pose.for_clip(options.frames, options.size)
    for told in (*pose.remarks, *pose.told_of(options.frames)):
        _log.warning(told)
    return cut
