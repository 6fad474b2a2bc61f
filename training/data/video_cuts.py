"""Hard cuts between the frames of a video, by PySceneDetect, which is imported late."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.late_import import missing

_LONG_SIDE = 256  # pixels of what is compared: PySceneDetect's own


def hard_cuts(frames: Iterable[NDArray[np.uint8]], threshold: float, min_length: int) -> list[int]:
    """The numbers of the frames that begin a new shot, in order; the first frame of all is none of them.

    Frames are numbered as they come. PySceneDetect reads files by itself too, but then gives times multiplied by the
    mean rate in the place of numbers, which in a video of variable rate are other frames.

    Args:
        frames: RGB (H, W, 3), every frame in turn. threshold: of ContentDetector.
        min_length: frames from one cut to the next.

    Raises:
        MissingDependencyError: PySceneDetect is not installed.
    """
    try:
        import cv2
        from scenedetect import ContentDetector, FrameTimecode
    except ImportError:
        raise missing("Looking for cuts", "scenedetect-headless") from None
    detector = ContentDetector(threshold, min_scene_len=min_length)
    size: tuple[int, int] | None = None
    cuts: list[int] = []
    for number, frame in enumerate(frames):
        if size is None:  # that of the first frame, also where later ones have another
            height, width = frame.shape[:2]
            share = min(1.0, _LONG_SIDE / max(height, width))
            size = (max(1, round(width * share)), max(1, round(height * share)))
        small = frame if frame.shape[1::-1] == size else cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        found = detector.process_frame(FrameTimecode(number, fps=1.0), np.ascontiguousarray(small[..., ::-1]))
        cuts += [cut.frame_num for cut in found]
    return cuts
