"""The person of a frame: masks from a folder or the segmenter of the extra `pose`, and the cut-out on white."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import read_picture
from contextanyone_core.pose.selfie import SelfieSegmenter
from evaluation.metrics.frames import Source, chosen, file_digest, positions
from evaluation.videos import read_frames

Frames = NDArray[np.uint8]
Masks = NDArray[np.bool_]

_MARGIN = 0.05  # of the cut-out's longer side, white around it


class MaskSource(Protocol):
    """Where masks come from."""

    def key(self, source: Source) -> str:
        """What the masks of a clip depend on beside its frames."""

    def masks(self, source: Source) -> Masks:
        """Masks of the chosen frames of a clip: (N, H, W), true on the person."""


class MaskFolder:
    """Masks on disk, white on the person: FOLDER/references/ID.png, and FOLDER/SYSTEM/FILE for each clip.

    A clip's masks are a video or a folder of pictures with as many frames as the clip, of its size, and have the
    clip's name, or as a folder its name without the ending.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"--masks {folder} is no folder.")
        self._folder = folder

    def key(self, source: Source) -> str:
        """The hash of the masks' file. Raises InputError where there is none."""
        return file_digest(self._place(source))

    def masks(self, source: Source) -> Masks:
        """Raises InputError where there is none, or number and size are not the clip's."""
        place = self._place(source)
        found = read_picture(place)[None] if source.still else read_frames(place)
        wanted = (1, *source.frames.shape[1:3]) if source.still else source.frames.shape[:3]
        if found.shape[:3] != wanted:
            raise InputError(f"{place} has masks {found.shape[:3]} (frames, height, width); the clip has {wanted}.")
        return np.asarray(found[positions(len(found))].mean(-1) > 127)

    def _place(self, source: Source) -> Path:
        place = self._folder / source.mask
        found = next((path for path in (place, place.with_suffix("")) if path.exists()), None)
        if found is None:
            raise InputError(f"--masks {self._folder} has no {source.mask}.")
        return found


class SegmentedMasks:
    """Masks by MediaPipe's selfie segmentation, which the extra `pose` runs.

    Args:
        models: MediaPipe's wheel, or a folder with its .tflite file.
    """

    def __init__(self, models: Path) -> None:
        self._segmenter = SelfieSegmenter(models)
        self._key = f"selfie-{file_digest(models)}"

    def key(self, source: Source) -> str:
        """The segmenter's hash."""
        return self._key

    def masks(self, source: Source) -> Masks:
        """Masks at a half."""
        return np.stack([mask > 0.5 for mask in self._segmenter.segment(chosen(source))])


def cut_out(frame: Frames, mask: NDArray[np.bool_]) -> Frames | None:
    """The person on a white square with a small margin, (S, S, 3); None where the mask is empty.

    Reference and frames are cut in the same way, so that neither place nor size in the picture counts.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    person = np.where(mask[part][..., None], frame[part], np.uint8(255))
    height, width = person.shape[:2]
    side = round(max(height, width) * (1 + 2 * _MARGIN))
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + height, left : left + width] = person
    return square
