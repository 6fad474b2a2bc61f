"""Poses and a start frame from a node's sockets to conditionings, with ComfyUI's own VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import node_helpers
import numpy as np
import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.encoders.condition import encode_condition
from ...contextanyone_core.errors import InputError
from ...contextanyone_core.media.image_io import frames_to_images, images_to_frames
from ...contextanyone_core.media.video_io import FPS
from ...contextanyone_core.pose.body import Body, body_of, read_personal_body
from ...contextanyone_core.pose.drawing import STYLES
from ...contextanyone_core.pose.drawn import at_rate, inspect_drawn
from ...contextanyone_core.pose.driving import DrivingPose, driven_by
from ...contextanyone_core.pose.openpose import frames_of, parse_json
from ...contextanyone_core.pose.reading import PoseSource, poses_of
from ...contextanyone_core.pose.sequence import PoseSequence
from ...contextanyone_core.shapes import VideoShape
from .given import checked_images, require_channels, require_given
from .loading import file_names_only, file_state
from .model import POSE, POSE_END, POSE_START, POSE_STRENGTH, START_FRAME
from .personal_files import personal_names, personal_path
from .references import HostVAE, ReferencePicture, on_white_by_alpha, require_latents
from .types import Conditioning, Keypoints, Vae

NO_FILE = "none"
_POSES = Path(__file__).resolve().parents[2] / "assets" / "poses"
_PREVIEW_SIDE, _PREVIEW_FRAMES = 384, 81


@dataclass(frozen=True, eq=False)
class GivenPose:
    """A CONTEXTANYONE_POSE; it is drawn and encoded where the video's size is known.

    Attributes:
        pose: at 16 frames per second, fitted.
        window: the shares of the steps between which it acts.
    """

    pose: DrivingPose
    window: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Following:
    """What a video shall follow, as it comes over the sockets of a node; None is not connected."""

    pose: Any
    strength: float
    start_frame: Any
    vae: Vae | None


@dataclass(frozen=True)
class KeypointSettings:
    """How keypoints are read: person 0 is the only one, fps 0 the rate that they state; fit None is the default."""

    fit: str | None
    person: int
    fps: float


def take_keypoints(keypoints: Keypoints, body: Body | None, settings: KeypointSettings) -> DrivingPose:
    """Poses to follow from POSE_KEYPOINT, fitted to a body.

    Raises:
        InputError: nobody, several people and none chosen, no canvas, invalid numbers, or a fit without its body.
    """
    name = "The pose at keypoints"
    if body is not None and settings.fit == "none":
        raise InputError("A body is given and fit is none, which leaves it aside; choose another fit, or no body.")
    poses = _read(keypoints, name, settings, "choose one with person, such as 1")
    return driven_by(poses, body, settings.fit, name)


def take_drawn(image: torch.Tensor, fps: float) -> tuple[DrivingPose, str]:
    """Poses to follow from a video of drawn poses (T, H, W, 3) in [0, 1], and a warning, or "".

    Raises:
        InputError: it has no plain background, or is no IMAGE.
    """
    pixels = checked_images(image)[..., :3].float()
    if not bool(torch.isfinite(pixels).all()):
        raise InputError("image holds NaN or infinite values; what made it went wrong. Use another video.")
    frames = at_rate(images_to_frames(pixels.movedim(-1, 0) * 2.0 - 1.0), fps or FPS)
    odd = "" if inspect_drawn(frames).shows_skeleton else "The drawn poses show no skeleton in the colours of DWPose."
    return DrivingPose("The pose at image", frames), odd


def given_body(body: Keypoints | None, file: str) -> Body | None:
    """The body to fit to, from keypoints of a picture or clip of the person, or a personal file; None if not given.

    Raises:
        InputError: both, or one that shows or states no body.
    """
    if body is not None and file != NO_FILE:
        raise InputError("body is connected and body_file chosen; a pose has one body: leave one of them out.")
    if body is not None:
        one = KeypointSettings(None, 0, 0.0)
        return body_of(_read(body, "The body at body", one, "a body is one person's: give a picture of one"))
    if file == NO_FILE:
        return None
    path = personal_path(file)
    with file_names_only(path):
        return read_personal_body(path)


def body_files() -> list[str]:
    """Choices of a personal file: none, and what Load Personal Model lists."""
    return [NO_FILE, *personal_names()]


def body_state(file: str) -> tuple[int, int]:
    """A fingerprint of a personal file by its name; (0, 0) for none.

    Raises:
        InputError: it is no longer there.
    """
    return (0, 0) if file == NO_FILE else file_state(personal_path(file))


def pose_preview(pose: DrivingPose) -> torch.Tensor:
    """IMAGE (n, H, W, 3) in [0, 1] of the first frames, to look at."""
    return torch.from_numpy(pose.preview(_PREVIEW_SIDE, _PREVIEW_FRAMES).astype(np.float32) / 255.0)


def given_pose(value: Any) -> GivenPose | None:
    """What comes over a socket CONTEXTANYONE_POSE; None where nothing is connected.

    Raises:
        InputError: another kind of value.
    """
    if value is not None and not isinstance(value, GivenPose):
        raise InputError(f"pose is a {type(value).__name__}; connect ContextAnyone Pose.")
    return value


def condition_values(
    config: ContextAnyoneConfig,
    following: Following,
    reference: tuple[ReferencePicture, ...],
    size: tuple[int, int],
    length: int,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keys of a conditioning for what a video of `length` frames and `size` follows, and what to tell the user.

    Raises:
        InputError: the model follows nothing, there is no VAE, the pose is too short, or the start frame has another
            aspect.
        ShapeError: the VAE is another model's.
    """
    pose, start = given_pose(following.pose), _one_picture(following.start_frame)
    require_channels(config, pose=pose, start_frame=start)
    if pose is None and start is None:
        return {}, ()
    drawn = None
    if pose is not None:
        drawn = frames_to_images(pose.pose.for_clip(length, size).pictures(STYLES[config.pose_style]))
    encoded = encode_condition(HostVAE(_vae_of(following, reference)), drawn, start, size)
    for latents, frames in ((encoded.pose, length), (encoded.start, 1)):
        if latents is not None:
            require_latents(latents, VideoShape(frames, *size).latents_shape(config))
    values: dict[str, Any] = {}
    if pose is not None:
        low, high = pose.window
        values = {POSE: encoded.pose, POSE_STRENGTH: following.strength, POSE_START: low, POSE_END: high}
    if start is not None:
        values[START_FRAME] = encoded.start
    return values, () if pose is None else pose.pose.told_of(length)


def follow(values: dict[str, Any], *conditionings: Conditioning) -> tuple[Conditioning, ...]:
    """Conditionings that carry what the video follows: pose and start frame are in every pass."""
    return tuple(node_helpers.conditioning_set_values(item, values) if values else item for item in conditionings)


def example_pose_names() -> list[str]:
    """The example poses by name."""
    return sorted(path.stem for path in _POSES.glob("*.json"))


def example_pose(name: str, length: int) -> Keypoints:
    """The first frames of an example, POSE_KEYPOINT at 16 frames per second.

    Raises:
        InputError: there is no such example, or it is shorter.
    """
    path = _POSES / f"{Path(name).name}.json"
    with file_names_only(path):
        frames: Keypoints = parse_json(path)
    if length > len(frames):
        raise InputError(f"length is {length}; the example {name} has {len(frames)} frames: ask for at most that.")
    return frames[:length]


def _vae_of(following: Following, reference: tuple[ReferencePicture, ...]) -> Vae:
    """The VAE that is connected, else the references'."""
    vae = reference[0].vae if following.vae is None and reference else following.vae
    if vae is None:
        raise InputError(
            "pose and start_frame are encoded by a VAE, and there is none: connect vae (Load VAE, or the VAE of Load "
            "ContextAnyone Miniature), or a reference, whose VAE is taken."
        )
    return vae


def _read(keypoints: Keypoints, name: str, settings: KeypointSettings, choose: str) -> PoseSequence:
    require_given(keypoints=keypoints)
    found = frames_of(keypoints, name)
    if found.size is None:
        raise InputError(f"{name} does not say how large its picture is; connect SDPose or DWPose, which do.")
    rate, own_rate = "connect the video's rate to fps", "set fps to 0"
    source = PoseSource(None, settings.fps or None, settings.person or None, choose, rate=rate, own_rate=own_rate)
    return poses_of(found, source, name)


def _one_picture(image: Any) -> torch.Tensor | None:
    """A start frame as (1, 3, H, W) in [-1, 1], over white where it is transparent."""
    if image is None:
        return None
    pixels = checked_images(image, "start_frame")
    if len(pixels) > 1:
        raise InputError(f"start_frame holds {len(pixels)} pictures; a video has one first frame: give one.")
    return on_white_by_alpha(pixels.float().movedim(-1, 1), "start_frame")
