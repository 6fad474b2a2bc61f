"""Frames of a clip as any evaluation reads them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contextanyone_core.errors import InputError

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def read_frames(path: Path) -> NDArray[np.uint8]:
    """All frames of a video file, or of a folder of pictures in the order of their names: (T, H, W, 3) uint8.

    Raises:
        InputError: it cannot be read, has no frame, or its frames differ in size.
    """
    try:
        frames = _of_folder(path) if path.is_dir() else _of_video(path)
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"{path} cannot be read as a clip: {error}.") from None
    if not frames:
        raise InputError(f"{path} has no frame.")
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{path} has frames of several sizes.")
    return np.stack(frames)


def _of_folder(path: Path) -> list[NDArray[np.uint8]]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES and file.name[0] != ".")
    return [np.asarray(Image.open(file).convert("RGB"), np.uint8) for file in files]


def _of_video(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
