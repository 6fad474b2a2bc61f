"""Frames of a clip as any evaluation reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.media.read_video import open_video


def read_frames(path: Path) -> NDArray[np.uint8]:
    """All frames of a video file, an animation or a folder of pictures in natural order: (T, H, W, 3) uint8.

    Upright, with square pixels, over white; a video whose frames last differently is brought to its constant rate.

    Raises:
        InputError: it cannot be read, has no frame, or its frames differ in size.
        MissingDependencyError: it is a video file, and imageio-ffmpeg is not installed.
    """
    return np.stack(list(open_video(path).frames))
