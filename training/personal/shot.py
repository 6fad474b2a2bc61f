"""The user's clip: what it is, the one shot of it that is used, and its frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from training.data.media import picture_files, probe, read_frames
from training.data.video import video_frames
from training.data.video_cuts import hard_cuts

_LOG = logging.getLogger(__name__)
_THRESHOLD, _MIN_LENGTH = 27.0, 9  # PySceneDetect's own of ContentDetector; frames of the shortest shot
_CHUNK = 16  # frames that are in memory at once
LEAST = 9
"""Frames at 16 a second that a clip must have: the second stage's shortest."""


@dataclass(frozen=True)
class Shot:
    """One shot of a clip.

    Attributes:
        path: a video, a folder of pictures or an animation.
        total: frames of the whole clip. start, stop: those of the shot, stop exclusive.
        fps: mean rate. width, height: in pixels, upright.
    """

    path: Path
    total: int
    start: int
    stop: int
    fps: float
    width: int
    height: int

    @property
    def num_frames(self) -> int:
        """Frames of the shot."""
        return self.stop - self.start

    @property
    def at_16(self) -> int:
        """Frames of the shot at 16 a second."""
        return int((self.num_frames - 1) / self.fps * 16 + 1e-3) + 1

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """The shot's frames, (H, W, 3) RGB, read a few at a time."""
        for start in range(self.start, self.stop, _CHUNK):
            chunk = read_frames(self.path, range(start, min(start + _CHUNK, self.stop)))
            yield from chunk.permute(0, 2, 3, 1).numpy()


def open_clip(path: Path) -> Shot:
    """The longest shot of a clip; that there are others is logged.

    Raises:
        InputError: there is no such file, it is no video, or its shot has under 9 frames at 16 a second.
        MissingDependencyError: a library for videos is not installed.
    """
    if not path.exists():
        raise InputError(f"--clip {path}: there is no such file.")
    found = probe(path)
    count = len(found.times)
    if count == 1:
        raise InputError(f"--clip {path} is a single picture; a clip of at least {LEAST} frames is needed.")
    spans = _shots(path, count)
    start, stop = max(spans, key=lambda span: span[1] - span[0])
    if len(spans) > 1:
        _LOG.warning(
            "%s holds %d shots; the longest is used, frames %d to %d of %d.", path, len(spans), start, stop - 1, count
        )
    seconds = found.times[-1] - found.times[0]
    fps = (count - 1) / seconds if seconds > 0 else 16.0
    shot = Shot(path, count, start, stop, fps, found.width, found.height)
    if shot.at_16 < LEAST:
        raise InputError(
            f"--clip {path} has {shot.at_16} frames at 16 a second in its longest shot; at least {LEAST} are needed."
        )
    return shot


def _shots(path: Path, count: int) -> list[tuple[int, int]]:
    """Spans of frames between hard cuts; folders of pictures and animations are one shot."""
    if path.is_dir() or picture_files(path) is not None:
        return [(0, count)]
    starts = [0, *hard_cuts(video_frames(path), _THRESHOLD, _MIN_LENGTH)]
    return list(zip(starts, [*starts[1:], count], strict=True))
