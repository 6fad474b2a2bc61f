"""BlazePose: pose estimation of one person with MediaPipe's two networks, a detector and a landmark network.

Follows the published settings of MediaPipe's graphs (Apache-2.0): `pose_detection_cpu`, `pose_landmark_cpu`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .layouts import from_coco
from .litert import Model, Tensor, crop, model_bytes, sigmoid
from .sequence import BODY, Pixels, Points

_DETECTOR, _LANDMARKS = ("pose_detection.tflite", 224), ("pose_landmark_full.tflite", 256)
_STRIDES = ((8, 2), (16, 2), (32, 6))  # strides of the detector's feature maps, and anchors per cell
_LIKELY = 0.5  # minimum scores of a detection, and of the person's presence in the region
_ENLARGED = 1.25  # size of the region relative to the body's circle
_OVERLAP = 0.3
_REFINED = 0.5  # minimum confidence of a heatmap that refines a point
_WINDOW = 3  # cells to each side
_COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)  # COCO's 17 points among BlazePose's 33
_HIP_CENTRE, _CIRCLE = 33, 34  # two auxiliary points, which define the next frame's region


@dataclass(frozen=True)
class _Region:
    """A rotated square: its centre and side in pixels, and its angle in radians, clockwise."""

    x: float
    y: float
    side: float
    angle: float

    def to_frame(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (..., 2) in fractions of the square to pixels of the frame."""
        turn = np.array([[np.cos(self.angle), np.sin(self.angle)], [-np.sin(self.angle), np.cos(self.angle)]])
        placed: NDArray[np.float64] = ((points - 0.5) * self.side) @ turn + (self.x, self.y)
        return placed

    def corners(self) -> NDArray[np.float64]:
        """Upper left, upper right and lower left corner, (3, 2), in pixels of the frame."""
        return self.to_frame(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))


class BlazePose:
    """A `PoseEstimator` of one person, the most likely one, tracked from frame to frame.

    Args:
        models: MediaPipe's wheel or a folder with `pose_detection.tflite` and `pose_landmark_full.tflite`.

    Raises: MissingDependencyError if the extra `pose` is not installed; InputError if the files are missing.
    """

    def __init__(self, models: Path) -> None:
        detections = {"boxes": (1, 2254, 12), "scores": (1, 2254, 1)}
        landmarks = {"points": (1, 195), "presence": (1, 1), "heatmap": (1, 64, 64, 39)}
        self._detector = Model(model_bytes(models, _DETECTOR[0]), detections, _DETECTOR[1])
        self._landmarks = Model(model_bytes(models, _LANDMARKS[0]), landmarks, _LANDMARKS[1])
        self._anchors = _anchors(_DETECTOR[1])

    def estimate(self, frames: Iterable[Pixels]) -> Iterator[Points]:
        """The body in each frame; see `PoseEstimator.estimate`."""
        region = None
        for frame in frames:
            followed = region is not None
            region = region or self._detect(frame)
            body, region = (np.zeros((BODY, 3)), None) if region is None else self._find(frame, region)
            if region is None and followed and (again := self._detect(frame)):  # track lost: search the whole frame
                body, region = self._find(frame, again)
            yield body

    def _detect(self, frame: Pixels) -> _Region | None:
        """The region of the most likely person in the frame."""
        height, width = frame.shape[:2]
        longer, side = max(height, width), _DETECTOR[1]
        left, top = (width - longer) / 2, (height - longer) / 2
        corners = np.array([[left, top], [left + longer, top], [left, top + longer]])
        found = self._detector(crop(frame, corners, side, black=True) * 2 - 1)
        scores = sigmoid(found["scores"][0, :, 0].clip(-100, 100))
        best = int(scores.argmax())
        if scores[best] < _LIKELY:
            return None
        boxes = found["boxes"][0] / side
        boxes[:, :2] += self._anchors
        boxes[:, 4:] += np.tile(self._anchors, 4)
        same = (scores >= _LIKELY) & (_overlaps(boxes[:, :4], boxes[best, :4]) > _OVERLAP)
        merged = np.average(boxes[same], axis=0, weights=scores[same])
        centre, circle = (merged[4 + 2 * point : 6 + 2 * point] * longer + (left, top) for point in (0, 1))
        return _region(centre, circle)

    def _find(self, frame: Pixels, region: _Region) -> tuple[Points, _Region | None]:
        """The body in a region, and the next frame's region; zeros and None if there is no person in it."""
        side = _LANDMARKS[1]
        found = self._landmarks(crop(frame, region.corners(), side, black=False))
        if float(found["presence"][0, 0]) < _LIKELY:
            return np.zeros((BODY, 3)), None
        points = found["points"].reshape(39, 5).astype(np.float64)
        places = region.to_frame(_refined(points[:, :2] / side, found["heatmap"][0]))
        visible = sigmoid(points[:, 3].astype(np.float32))
        whole = np.concatenate([places, visible[:, None]], axis=1)
        return from_coco(whole[list(_COCO)]), _region(places[_HIP_CENTRE], places[_CIRCLE])


def _anchors(side: int) -> NDArray[np.float64]:
    """Centres of the detector's anchors in fractions of the picture, (2254, 2)."""
    layers = []
    for stride, count in _STRIDES:
        cells = side // stride
        y, x = np.divmod(np.arange(cells * cells), cells)
        layers.append(np.repeat((np.stack([x, y], axis=1) + 0.5) / cells, count, axis=0))
    return np.concatenate(layers)


def _overlaps(boxes: Tensor, one: Tensor) -> NDArray[np.float64]:
    """Intersection over union of boxes (N, 4), centre and size, with one box (4,)."""
    low = np.maximum(boxes[:, :2] - boxes[:, 2:] / 2, one[:2] - one[2:] / 2)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:] / 2, one[:2] + one[2:] / 2)
    common = np.prod((high - low).clip(min=0), axis=1)
    union = boxes[:, 2] * boxes[:, 3] + one[2] * one[3] - common
    overlap: NDArray[np.float64] = common / np.maximum(union, 1e-9)
    return overlap


def _region(centre: NDArray[np.float64], circle: NDArray[np.float64]) -> _Region | None:
    """The square in which a body is upright: `centre` between the hips, `circle` a point of its enclosing circle."""
    x, y = circle - centre
    side = 2 * _ENLARGED * float(np.hypot(x, y))
    return _Region(float(centre[0]), float(centre[1]), side, float(np.pi / 2 + np.arctan2(y, x))) if side > 1 else None


def _refined(points: NDArray[np.float64], heatmap: Tensor) -> NDArray[np.float64]:
    """Points (39, 2) in fractions of the picture, refined to the local centroid of their heatmaps (h, w, 39)."""
    height, width, _ = heatmap.shape
    refined = points.copy()
    for index, (x, y) in enumerate(points):
        column, row = int(x * width), int(y * height)
        if not (0 <= column < width and 0 <= row < height):
            continue
        left, top = max(0, column - _WINDOW), max(0, row - _WINDOW)
        part = sigmoid(heatmap[top : row + _WINDOW + 1, left : column + _WINDOW + 1, index])
        if part.max() >= _REFINED and part.sum() > 0:
            rows, columns = np.indices(part.shape)
            total = part.sum()
            refined[index] = (
                ((columns + left) * part).sum() / width / total,
                ((rows + top) * part).sum() / height / total,
            )
    return refined
