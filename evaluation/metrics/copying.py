"""Whether a clip copies the reference picture: its pixels as a whole, and what is around the person."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]

_SIDE = 48  # of the thumbnails that are correlated
_GREY = 128
_PLACE = 0.1  # share of the frame that must be left


def pixel_correlation(frames: Frames, reference: Frames) -> float:
    """The largest correlation of a frame's grey pixels with the reference's, from -1 to 1; 1 is a copy.

    Both are stretched to 48 x 48, so that a copy at another size or aspect is found. A frame of one grey has 0.

    Args:
        frames: (N, H, W, 3).
        reference: (H, W, 3) of any size.
    """
    wanted = _thumbnail(reference)
    return max(float(_thumbnail(frame) @ wanted) for frame in frames)


def background(frame: Frames, mask: NDArray[np.bool_]) -> Frames | None:
    """A frame (H, W, 3) with the person's bounding box in mid-grey: what is left is the place.

    The box and not the outline, because an outline alone shows the pose. None where the box leaves less than a tenth of
    the frame.
    """
    left = frame.copy()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return left
    box = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    if box > (1 - _PLACE) * mask.size:
        return None
    left[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = _GREY
    return left


def _thumbnail(frame: Frames) -> NDArray[np.float64]:
    small = Image.fromarray(frame).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(cv2.GaussianBlur(np.asarray(small, np.float32), (3, 3), 0), np.float64).ravel()
    values -= values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > 1e-6 else np.zeros_like(values)
