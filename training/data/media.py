"""Reading the videos, pictures, masks and poses that a manifest names. PyAV decodes video, and is imported late."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.media.image_io import read_picture
from training.data.frames import FPS
from training.data.seeking import frames_from, presentation_times

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif"})


class MediaError(InputError):
    """A file is there and cannot be used: damaged, of another format, or without the frames it should have."""


@dataclass(frozen=True)
class Probe:
    """What a video is before its frames are read: `times` of its frames in seconds, `width` and `height` upright."""

    times: list[float]
    width: int
    height: int


def probe(path: Path, fps: float | None = None) -> Probe:
    """Find the times of a video's frames and their size; decodes one frame.

    Args:
        path: a video file, a folder of pictures, or a picture.
        fps: replaces the file's times.

    Raises:
        MediaError: it cannot be read, or holds no frame.
        MissingDependencyError: it is a video file, and PyAV is not installed.
    """
    if (pictures := picture_files(path)) is not None:
        count = len(pictures)
        height, width = _rgb(pictures[0]).shape[:2]
        times = [index / FPS for index in range(count)]
    else:
        with _opened(path) as (container, stream):
            times = _packet_times(container, stream, path)
        height, width = next(_decoded(path)).shape[:2]
    if fps is not None:
        times = [index / fps for index in range(len(times))]
    return Probe(times, width, height)


def read_frames(path: Path, indexes: Sequence[int]) -> Tensor:
    """Frames by number: uint8 (len(indexes), 3, H, W), upright RGB. A number may come more than once.

    Raises:
        MediaError: a frame is missing or damaged, or frames differ in size.
        MissingDependencyError: it is a video file, and PyAV is not installed.
    """
    wanted, first = set(indexes), min(indexes)
    pictures = picture_files(path)
    stream = _decoded(path, first) if pictures is None else (_rgb(picture) for picture in _only(pictures, wanted))
    numbers = sorted(wanted) if pictures is not None else range(first, max(indexes) + 1)
    found: dict[int, Tensor] = {}
    for number, frame in zip(numbers, stream, strict=False):
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
    pictures = picture_files(path)
    count, size, names = 0, None, pictures[start:stop] if pictures is not None else []
    for found in _sizes(path, start) if pictures is None else map(_picture_size, names):
        between()
        if size is not None and found != size:
            frame = names[count].name if names else f"frame {start + count}"
            raise MediaError(
                f"{path} has frames of different sizes: {frame} is {found[1]} x {found[0]}, the one before is "
                f"{size[1]} x {size[0]}."
            )
        count, size = count + 1, found
        if count == stop - start:
            return
    raise MediaError(f"{path} has no frame {start + count} that decodes; {stop} are needed.")


def _picture_size(path: Path) -> tuple[int, int]:
    height, width = _rgb(path).shape[:2]
    return height, width


def _sizes(path: Path, start: int) -> Iterator[tuple[int, int]]:
    """(height, width) of every frame from `start` on, as the file has it. Raises MediaError where one is missing."""
    times = presentation_times(partial(_opened, path), path)
    for number, frame in enumerate(frames_from(partial(_opened, path), path, start), start):
        if times is not None and (number == len(times) or frame.pts != times[number]):
            raise MediaError(f"{path}: frame {number} does not decode.")
        yield frame.height, frame.width


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
    """SHA-256 of a file, or of the files of a folder of pictures one after the other, sorted by name.

    `between` is called before every megabyte; what it raises ends the work.
    """
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                between()
                digest.update(chunk)
    return digest.hexdigest()


def picture_files(path: Path) -> list[Path] | None:
    """The pictures of a folder, sorted by name, or the picture itself; None for a video file.

    Raises:
        MediaError: the folder holds no picture.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise MediaError(f"{path} is a folder without pictures.")
        return files
    return [path] if path.suffix.lower() in PICTURES else None


def _only(files: Sequence[Path], wanted: set[int]) -> list[Path]:
    return [file for index, file in enumerate(files) if index in wanted]


def _rgb(path: Path) -> NDArray[np.uint8]:
    try:
        return read_picture(path)
    except InputError as error:
        raise MediaError(str(error)) from None


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            'Reading video files needs PyAV, which is not installed. Run: pip install "contextanyone[data]"'
        ) from error
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video in it.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError, EOFError, ValueError) as error:
        raise MediaError(f"{path} cannot be decoded ({error}).") from None


def _packet_times(container: Any, stream: Any, path: Path) -> list[float]:
    """Seconds of every frame, without decoding; by number where the container gives a frame no time."""
    packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if not packets:
        raise MediaError(f"{path} holds no frame.")
    if any(packet.pts is None for packet in packets):
        rate = float(stream.average_rate or FPS)
        return [index / rate for index in range(len(packets))]
    return sorted(float(packet.pts * packet.time_base) for packet in packets)


def _decoded(path: Path, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Every frame from number `start` on, upright RGB (H, W, 3)."""
    for frame in frames_from(partial(_opened, path), path, start):
        picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
        yield np.rot90(picture, round(frame.rotation / 90) % 4)
