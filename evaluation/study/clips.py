"""Both clips of a trial in the same codec, size, length and frame rate, so that these cannot identify the system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contextanyone_core.media.image_io import read_picture
from contextanyone_core.media.read_video import open_video
from contextanyone_core.media.video_io import write_clip
from training.data.frames import resample
from training.data.video_windows import frames_available

_HELD = 33  # frames


def write_alike(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Read clips and write them as .mp4 at 16 frames per second, cut to the shortest and fitted into the smallest.

    Each keeps its speed: of a clip at another rate the frames nearest in time are taken.

    Raises:
        InputError: a clip cannot be read.
    """
    _write([_read(path) for path in sources], targets)


def write_held(pictures: Sequence[Path], targets: Sequence[Path]) -> None:
    """Write pictures as `write_alike` writes clips, each held for two seconds.

    Raises:
        InputError: a picture cannot be read.
    """
    _write([np.repeat(read_picture(path)[None], _HELD, axis=0) for path in pictures], targets)


def _write(clips: Sequence[NDArray[np.uint8]], targets: Sequence[Path]) -> None:
    length = min(len(clip) for clip in clips)
    height = min(clip.shape[1] for clip in clips) // 2 * 2
    width = min(clip.shape[2] for clip in clips) // 2 * 2
    for clip, target in zip(clips, targets, strict=True):
        write_clip(target, np.stack([_fitted(frame, height, width) for frame in clip[:length]]), {})


def _read(path: Path) -> NDArray[np.uint8]:
    """The frames of a clip at 16 per second, (T, H, W, 3)."""
    video = open_video(path)
    frames = list(video.frames)
    times = [index / video.fps for index in range(len(frames))]
    return np.stack([frames[index] for index in resample(times, frames_available(times))])


def _fitted(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The whole frame fitted into (height, width), padded with white if the aspect ratios differ."""
    if frame.shape[:2] == (height, width):
        return frame
    share = min(height / frame.shape[0], width / frame.shape[1])
    size = (max(1, round(frame.shape[1] * share)), max(1, round(frame.shape[0] * share)))
    inner = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(inner, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas, np.uint8)
