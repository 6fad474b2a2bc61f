"""Reading poses from files in any supported format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..media.read_video import natural_key
from ..media.video_io import FPS
from .openpose import PoseFrames, frames_of, parse_json
from .people import choose_person
from .pose_file import read_pose_file
from .sequence import SEEN, PoseSequence, sequence_of


@dataclass(frozen=True)
class PoseSource:
    """What a file of keypoints may not state: canvas (height, width) in pixels, frames per second, and which person.

    `choose` explains how to choose one of several people, `rate` how to state the rate, and `own_rate` how to leave it
    to the file, for messages. `picture` is the canvas of a file that states none, where one that states another keeps
    its own.
    """

    canvas: tuple[int, int] | None = None
    fps: float | None = None
    person: int | None = None
    choose: str = "choose one, such as --person 1"
    rate: str = "state it, such as --fps 30"
    own_rate: str = "leave --fps out"
    picture: tuple[int, int] | None = None


def is_keypoints(path: Path) -> bool:
    """Whether a path names keypoints: .json, .safetensors, or a folder with .json files."""
    return path.suffix.lower() in (".json", ".safetensors") or (path.is_dir() and bool(_json_files(path)))


def read_poses(path: Path, source: PoseSource) -> PoseSequence:
    """Read OpenPose's JSON (a file or a folder of frames), POSE_KEYPOINT, COCO's 17 points, a manifest's safetensors.

    Args:
        path: a .json file, a folder of them (one frame each, in natural order), or a .safetensors file.
        source: values that the file does not state; a contradiction is an error.

    Returns: the poses of the file, at its own frame rate.
    Raises: InputError if the file cannot be read, shows nobody, shows several people while none is chosen, or has no
        known canvas.
    """
    if path.suffix.lower() == ".safetensors":
        return _one_person(read_pose_file(path), source, path)
    if path.is_dir():
        return poses_of(_folder(path), source, str(path))
    return poses_of(frames_of(parse_json(path), str(path)), source, str(path))


def poses_of(frames: PoseFrames, source: PoseSource, name: str) -> PoseSequence:
    """Select one person's poses from frames of people; arguments and errors as in `read_poses`."""
    size = frames.size or source.canvas or source.picture
    if size is None:
        raise InputError(
            f"{name} does not say how large the picture is that its points lie on; state it: contextanyone pose "
            f"{name} --canvas WIDTHxHEIGHT --out poses.json."
        )
    _agree(frames.size, frames.fps, source, name)
    person, ignored = choose_person(frames.in_pixels(size), source.person, name, source.choose)
    poses = sequence_of(person, size, frames.fps or source.fps or FPS)
    unstated = frames.fps is None and source.fps is None and poses.num_frames > 1
    assumed = f"{name} does not state its rate, and {FPS} frames a second are assumed: {source.rate}"
    return poses.remarked(ignored).remarked(assumed if unstated else "")


def _one_person(poses: PoseSequence, source: PoseSource, path: Path) -> PoseSequence:
    if source.person not in (None, 1):
        raise InputError(f"person {source.person} is asked for; a pose file as {path} holds one.")
    _agree((poses.height, poses.width), poses.fps, source, str(path))
    if not (poses.body[..., 2] > SEEN).any():
        raise InputError(f"{path} shows nobody: no point of a body has a score above {SEEN:g} in any of its frames.")
    return poses


def _folder(path: Path) -> PoseFrames:
    files = _json_files(path)
    if not files:
        raise InputError(f"{path} is a folder without .json files; OpenPose writes one for each frame.")
    contents = [parse_json(file) for file in files]
    for file, content in zip(files, contents, strict=True):
        if not (isinstance(content, dict) and "people" in content):
            raise InputError(f"{file} is no frame of OpenPose: it has no `people`.")
    return frames_of(contents, str(path))


def _json_files(path: Path) -> Sequence[Path]:
    files = [file for file in path.iterdir() if file.suffix.lower() == ".json" and not file.name.startswith(".")]
    return sorted(files, key=lambda file: natural_key(file.name))


def _agree(size: tuple[int, int] | None, fps: float | None, source: PoseSource, name: str) -> None:
    """Refuse a canvas or frame rate that contradicts the file."""
    if size and source.canvas and size != source.canvas:
        raise InputError(
            f"{name} states a canvas of {_wide(size)}, asked for is {_wide(source.canvas)}; leave --canvas out."
        )
    if fps and source.fps and fps != source.fps:
        raise InputError(f"{name} states {fps:g} frames a second, asked for are {source.fps:g}; {source.own_rate}.")


def _wide(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"
