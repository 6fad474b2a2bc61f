"""The frames of a clip that every metric takes, and how fast they follow one another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import read_picture
from contextanyone_core.media.read_video import open_video
from contextanyone_core.media.video_io import FPS
from contextanyone_core.weights.file_hash import sha256_of
from evaluation.videos import read_frames

Frames = NDArray[np.uint8]

COUNT = 16
"""How many frames of a clip the metrics of single frames take."""

_STILL_FRAMES = 33


def positions(length: int) -> NDArray[np.int64]:
    """Which frames of a clip are taken: the middles of 16 equal parts, or all frames of a shorter clip.

    Neither the first nor the last frame is preferred.
    """
    if length <= COUNT:
        return np.arange(length, dtype=np.int64)
    return np.floor((np.arange(COUNT) + 0.5) * length / COUNT).astype(np.int64)


@dataclass(frozen=True)
class Source:
    """A clip by its place; its frames are read at first use.

    Attributes:
        path: a video, a folder of pictures, or with `still` one picture.
        still: the picture as a video of 33 frames that does not move.
        mask: where its masks are, below the folder of masks.
    """

    path: Path
    mask: str
    still: bool = False

    @cached_property
    def frames(self) -> Frames:
        """All frames, (T, H, W, 3) uint8, of a still one picture in memory. Raises InputError if it cannot be read."""
        if self.still:
            picture = read_picture(self.path)
            return np.broadcast_to(picture, (_STILL_FRAMES, *picture.shape))
        return read_frames(self.path)

    @cached_property
    def rate(self) -> float:
        """Frames a second. Raises InputError if the video cannot be read."""
        if self.still:
            return float(FPS)
        return open_video(self.path).fps

    @cached_property
    def digest(self) -> str:
        """A hash of what the frames are read from. Raises InputError where it cannot be read."""
        return f"still-{file_digest(self.path)}" if self.still else file_digest(self.path)

    def forget(self) -> None:
        """Let go of the frames; they are read again at the next use."""
        self.__dict__.pop("frames", None)


def chosen(source: Source) -> Frames:
    """The frames of a clip that metrics of single frames take: (16 or fewer, H, W, 3); one of a still."""
    return source.frames[:1] if source.still else np.asarray(source.frames[positions(len(source.frames))])


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder. Raises InputError where it cannot be read."""
    return _read(path, lambda: _folder_digest(path) if path.is_dir() else sha256_of(path))


def _folder_digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    named = [f"{file.relative_to(path).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def _read(path: Path, read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
