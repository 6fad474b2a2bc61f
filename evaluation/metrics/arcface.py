"""An ArcFace pack in insightface's form, by ONNX Runtime: an SCRFD detector and a recognition network.

The open packs (buffalo_l, antelopev2) are not for commercial use, according to their authors; none is downloaded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from evaluation.metrics.faces import Descriptor, Frames, optional_module, padded
from evaluation.metrics.frames import file_digest

Values = NDArray[np.float32]

_SIDE, _STRIDES, _ANCHORS = 640, (8, 16, 32), 2
_LIMIT = 0.5
_FACE = 112
_EYES_NOSE_MOUTH = np.asarray(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
"""Where ArcFace needs both eyes, the nose and both corners of the mouth in its square of 112 pixels."""


class ArcFacePack:
    """The networks of a folder: the detector is the file det_*.onnx or scrfd_*.onnx, the recogniser w600k_*.onnx or
    glintr*.onnx. The folder's name is part of the metrics' names. Similarity is the cosine.

    Raises: InputError where a file is missing or is another network; MissingDependencyError without onnxruntime.
    """

    def __init__(self, folder: Path) -> None:
        session = optional_module("onnxruntime", "onnxruntime").InferenceSession
        files = [_one(folder, "det_*.onnx", "scrfd_*.onnx"), _one(folder, "w600k_*.onnx", "glintr*.onnx")]
        try:
            self._detector, self._network = (session(str(file), providers=["CPUExecutionProvider"]) for file in files)
        except Exception as error:  # onnxruntime's errors have no public base class
            raise InputError(f"--faces {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
        count = len(self._detector.get_outputs())
        if count != 3 * len(_STRIDES):
            raise InputError(f"{files[0]} has {count} outputs; an SCRFD with landmarks has 9.")
        self.name = f"arcface_{folder.resolve().name}"
        self.revision = "-".join(file_digest(file) for file in files)

    def describe(self, frame: Frames) -> Descriptor | None:
        """The largest face, aligned by its five points."""
        for picture in (frame, padded(frame)):
            points = self._points(picture)
            if points is not None:
                turn, _ = cv2.estimateAffinePartial2D(points, _EYES_NOSE_MOUTH, method=cv2.LMEDS)
                aligned = cv2.warpAffine(picture, turn, (_FACE, _FACE))
                return np.asarray(_run(self._network, _blob(aligned, 127.5))[0][0], np.float32)
        return None

    def similarity(self, one: Descriptor, other: Descriptor) -> float:
        """The cosine."""
        return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))

    def _points(self, frame: Frames) -> Values | None:
        """Five points of the largest face, (5, 2) x and y in pixels."""
        scale = _SIDE / max(frame.shape[:2])
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        square = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        square[: size[1], : size[0]] = cv2.resize(frame, size)
        boxes, points = decode(_run(self._detector, _blob(square, 128.0)))
        if not len(boxes):
            return None
        largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
        return np.asarray(points[largest] / scale, np.float32)


def decode(outputs: list[Values]) -> tuple[Values, Values]:
    """SCRFD's outputs (scores, box distances and landmark offsets of strides 8, 16, 32) to boxes and points.

    Returns: boxes (N, 4) as left, top, right, bottom, and points (N, 5, 2), both in pixels of the square of 640, of
        anchors with a score of at least 0.5. Overlapping ones are not merged: only the largest face is used.
    """
    boxes, points = [], []
    for level, stride in enumerate(_STRIDES):
        score, distance, offset = (outputs[level + kind * len(_STRIDES)] for kind in range(3))
        cells = _SIDE // stride
        rows, columns = np.mgrid[:cells, :cells]
        centres = np.repeat(np.stack([columns, rows], -1).reshape(-1, 2) * stride, _ANCHORS, axis=0).astype(np.float32)
        kept = score.reshape(-1) >= _LIMIT
        centre, far = centres[kept], distance.reshape(-1, 4)[kept] * stride
        boxes.append(np.concatenate([centre - far[:, :2], centre + far[:, 2:]], axis=1))
        points.append(centre[:, None] + offset.reshape(-1, 5, 2)[kept] * stride)
    return np.concatenate(boxes), np.concatenate(points)


def _blob(picture: NDArray[Any], divisor: float) -> Values:
    return np.ascontiguousarray(((picture.astype(np.float32) - 127.5) / divisor).transpose(2, 0, 1)[None])


def _run(session: Any, blob: Values) -> list[Values]:
    return list(session.run(None, {session.get_inputs()[0].name: blob}))


def _one(folder: Path, *patterns: str) -> Path:
    found = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder} has {len(found)} files {' or '.join(patterns)}; it must have one.")
    return found[0]
