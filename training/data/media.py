"""Reading the videos, pictures, masks and poses that a manifest names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import picture_size, read_animation, read_picture
from contextanyone_core.media.read_video import ANIMATIONS, frame_files, visible_files
from contextanyone_core.media.video_io import FPS
from training.data.video import MediaError, video_frames, video_sizes, video_times

__all__ = [
    "MediaError",
    "Probe",
    "check_frames",
    "content_hash",
    "picture_files",
    "probe",
    "read_frames",
    "read_masks",
    "read_pose",
]


@dataclass(frozen=True)
class Probe:
    """What a video is before its frames are read: `times` of its frames in seconds, `width` and `height` upright."""

    times: list[float]
    width: int
    height: int


def probe(path: Path, fps: float | None = None) -> Probe:
    """Find the times of a video's frames and their size; decodes one frame of a video file, and whole animations.

    Args:
        path: a video file, a folder of pictures in the order of their numbers, or a picture, animated or not.
        fps: replaces the file's times.

    Raises:
        MediaError: it cannot be read, or holds no frame, or the pictures of a folder differ in size.
        MissingDependencyError: it is a video file, and PyAV is not installed.
    """
    if path.is_dir():
        pictures = _folder(path)
        width, height = _one_size(path, pictures)
        times = [index / FPS for index in range(len(pictures))]
    elif picture_files(path) is not None:
        shown = [(time, frame.shape) for time, _, frame in _animation(path)]
        times, (height, width) = [time for time, _ in shown], shown[0][1][:2]
    else:
        times = video_times(path)
        height, width = next(video_frames(path)).shape[:2]
    if fps is not None:
        times = [index / fps for index in range(len(times))]
    return Probe(times, width, height)


def read_frames(path: Path, indexes: Sequence[int]) -> Tensor:
    """Frames by number: uint8 (len(indexes), 3, H, W), upright RGB. A number may come more than once.

    Raises:
        MediaError: a frame is missing or damaged, or frames differ in size.
        MissingDependencyError: it is a video file, and PyAV is not installed.
    """
    wanted = set(indexes)
    stream: Iterator[tuple[int, NDArray[np.uint8]]]
    if path.is_dir():
        named = [(number, picture) for number, picture in enumerate(_folder(path)) if number in wanted]
        stream = ((number, _rgb(picture)) for number, picture in named)
    else:
        first = min(indexes)
        stream = zip(range(first, max(indexes) + 1), _frames(path, first), strict=False)
    found: dict[int, Tensor] = {}
    for number, frame in stream:
        if number in wanted:
            found[number] = torch.from_numpy(frame.copy()).permute(2, 0, 1)
    if missing := sorted(wanted - found.keys()):
        raise MediaError(f"{path} has no frame {missing[0]}.")
    if len({frame.shape for frame in found.values()}) > 1:
        raise MediaError(f"{path} has frames of different sizes.")
    return torch.stack([found[index] for index in indexes])


def read_masks(path: Path, indexes: Sequence[int]) -> Tensor:
    """Masks by number: uint8 (len(indexes), 1, H, W), the mean of the colours; raises as `read_frames`."""
    return read_frames(path, indexes).float().mean(1, keepdim=True).round().to(torch.uint8)


def check_frames(path: Path, start: int, stop: int, between: Callable[[], None]) -> None:
    """Decode the frames from `start` up to `stop`: the thorough test of a file.

    Args:
        between: called before every frame; what it raises ends the test.

    Raises:
        MediaError: a frame is missing or damaged, or frames differ in size.
        MissingDependencyError: it is a video file, and PyAV is not installed.
    """
    count, size = 0, None
    for found in _sizes(path, start, stop):
        between()
        if size is not None and found != size:
            raise MediaError(f"{path} has frames of different sizes: frame {start + count} and the one before.")
        count, size = count + 1, found
        if count == stop - start:
            return
    raise MediaError(f"{path} has no frame {start + count} that decodes; {stop} are needed.")


def _sizes(path: Path, start: int, stop: int) -> Iterator[tuple[int, int]]:
    if path.is_dir():
        frames = (_rgb(picture) for picture in _folder(path)[start:stop])
    elif picture_files(path) is not None:
        frames = (frame for frame in _frames(path, start))
    else:
        yield from video_sizes(path, start)
        return
    for frame in frames:
        yield frame.shape[0], frame.shape[1]


def read_pose(path: Path) -> NDArray[np.float32]:
    """Keypoints (frames, points, 2 or 3), float32, of a pose file (`ManifestRow.pose`).

    Raises:
        MediaError: it is no such file, or holds numbers that are not finite.
    """
    try:
        keypoints = load_file(path).get("keypoints")
    except (SafetensorError, OSError) as error:
        raise MediaError(f"{path} cannot be read as safetensors ({error}).") from None
    if keypoints is None or keypoints.ndim != 3 or keypoints.shape[2] not in (2, 3):
        raise MediaError(f"{path} must hold the tensor keypoints, (frames, points, 2 or 3).")
    if not bool(torch.isfinite(keypoints).all()):
        raise MediaError(f"{path} has keypoints that are not finite numbers.")
    points: NDArray[np.float32] = keypoints.float().numpy()
    return points


def content_hash(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file, or of the files of a folder one after the other, sorted by name; hidden ones do not count.

    Args:
        between: called before every megabyte; what it raises ends the work.

    Raises:
        MediaError: it is no regular file.
    """
    digest = hashlib.sha256()
    for file in sorted(visible_files(path)) if path.is_dir() else [path]:
        if not file.is_file():
            raise MediaError(f"{file} is not a regular file.")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                between()
                digest.update(chunk)
    return digest.hexdigest()


def picture_files(path: Path) -> list[Path] | None:
    """The pictures of a folder in the order of their numbers, or the picture itself; None for a video file.

    Raises:
        MediaError: the folder holds no picture.
    """
    if path.is_dir():
        return _folder(path)
    return [path] if path.suffix.lower() in ANIMATIONS else None


def _folder(path: Path) -> list[Path]:
    with _as_media():
        return frame_files(path)


def _one_size(path: Path, pictures: Sequence[Path]) -> tuple[int, int]:
    """Width and height of the pictures of a folder, from their headers."""
    with _as_media():
        sizes = [picture_size(picture) for picture in pictures]
    for picture, size in zip(pictures, sizes, strict=True):
        if size != sizes[0]:
            words = f"{picture.name} is {size[0]} x {size[1]}, {pictures[0].name} {sizes[0][0]} x {sizes[0][1]}"
            raise MediaError(f"{path} has frames of different sizes: {words}.")
    return sizes[0]


def _frames(path: Path, start: int) -> Iterator[NDArray[np.uint8]]:
    """Every frame of a video or of a picture from number `start` on."""
    if picture_files(path) is None:
        return video_frames(path, start)
    return islice((frame for *_, frame in _animation(path)), start, None)


def _animation(path: Path) -> Iterator[tuple[float, float, NDArray[np.uint8]]]:
    with _as_media():
        yield from read_animation(path)


def _rgb(path: Path) -> NDArray[np.uint8]:
    with _as_media():
        return read_picture(path)


@contextmanager
def _as_media() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise MediaError(str(error)) from None
