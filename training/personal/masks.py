"""Where the person is in every frame of the clip: given, segmented, or the hull of the skeleton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from contextanyone_core.pose.estimation import PersonSegmenter
from contextanyone_core.pose.sequence import SEEN, Points, PoseSequence
from training.data.media import probe, read_masks
from training.personal.shot import Shot

Mask = NDArray[np.uint8]
"""(H, W), 255 where the person is."""

_NOSE, _NECK = 0, 1
_HEADS = 0.6  # of a head's height is added to the hull on all sides
_HEAD_OF_NECK = 1.6  # a head's height in distances from the neck to the nose
_HEAD_OF_FIGURE = 0.15  # the same in heights of the figure, where the head is not seen
_EMPTY = 0.002  # share of the picture below which a mask shows nobody
_OTHER = 0.35  # area of a second person in areas of the first
_SURE = 178  # of 255: between two people who stand close a segmenter is not sure, and its mask joins them
_CHUNK = 16


def masks_of_shot(
    shot: Shot, poses: PoseSequence, given: Path | None, segmenter: PersonSegmenter | None
) -> Iterator[Mask]:
    """The mask of each frame of a shot: a file's, else the segmenter's, else the skeleton's hull.

    Args:
        given: a video or a folder of grey pictures with a mask for each frame of the clip.
        segmenter: None takes the hull.

    Raises:
        InputError: the file does not fit the clip, or several people are found.
    """
    if given is not None:
        return _given(shot, given)
    if segmenter is not None:
        return _segmented(shot, segmenter)
    return (hull(body, (shot.height, shot.width)) for body in poses.body)


def _given(shot: Shot, path: Path) -> Iterator[Mask]:
    if not path.exists():
        raise InputError(f"--mask {path}: there is no such file.")
    found = probe(path)
    if (found.width, found.height) != (shot.width, shot.height):
        raise InputError(
            f"--mask {path} has {found.width} x {found.height} pixels, the clip {shot.width} x {shot.height}; they "
            "must be equal."
        )
    if len(found.times) != shot.total:
        raise InputError(f"--mask {path} has {len(found.times)} frames, the clip {shot.total}; give one for each.")
    for start in range(shot.start, shot.stop, _CHUNK):
        yield from read_masks(path, range(start, min(start + _CHUNK, shot.stop)))[:, 0].numpy()


def _segmented(shot: Shot, segmenter: PersonSegmenter) -> Iterator[Mask]:
    several = frames = 0
    for share in segmenter.segment(shot.frames()):
        mask = np.round(share * 255).astype(np.uint8)
        areas = _areas(mask)
        frames += 1
        several += len(areas) > 1 and areas[1] > _OTHER * areas[0]
        yield mask
    if several > frames / 2:
        raise InputError(
            f"{shot.path} shows several people in {several} of {frames} frames; crop it to one, or give --mask and "
            "--pose of one."
        )


def _areas(mask: Mask) -> list[int]:
    """The pixels of the connected regions that surely show somebody, the largest first."""
    _, _, statistics, _ = cv2.connectedComponentsWithStats((mask > _SURE).astype(np.uint8))
    return sorted((int(area) for area in statistics[1:, cv2.CC_STAT_AREA]), reverse=True)


def hull(body: Points, size: tuple[int, int]) -> Mask:
    """The convex hull of the joints (18, 3) that are seen, enlarged by 0.6 of a head's height: (H, W)."""
    mask = np.zeros(size, np.uint8)
    seen = body[body[:, 2] > SEEN, :2]
    if not len(seen):
        return mask
    head = _HEAD_OF_FIGURE * float(np.ptp(seen[:, 1]))
    if (body[[_NOSE, _NECK], 2] > SEEN).all():
        head = max(head, _HEAD_OF_NECK * float(np.linalg.norm(body[_NOSE, :2] - body[_NECK, :2])))
    points = cv2.convexHull(seen.astype(np.float32).reshape(-1, 1, 2)).round().astype(np.int32)
    cv2.fillConvexPoly(mask, points, 255)
    cv2.polylines(mask, [points], True, 255, max(1, round(2 * _HEADS * head)))
    return mask


def shows_somebody(mask: Mask) -> bool:
    """Whether a mask is not empty."""
    return float((mask > 127).mean()) > _EMPTY
