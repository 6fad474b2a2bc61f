"""Selfie segmentation: masks of people, with MediaPipe's small network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .litert import Model, crop, model_bytes
from .sequence import Pixels

_FILE, _SIDE = "selfie_segmentation.tflite", 256


class SelfieSegmenter:
    """A `PersonSegmenter` for people who fill a large part of the picture.

    Args:
        models: MediaPipe's wheel or a folder with `selfie_segmentation.tflite`.

    Raises: MissingDependencyError if the extra `pose` is not installed; InputError if the file is missing.
    """

    def __init__(self, models: Path) -> None:
        self._model = Model(model_bytes(models, _FILE), {"mask": (1, _SIDE, _SIDE, 1)}, _SIDE)

    def segment(self, frames: Iterable[Pixels]) -> Iterator[NDArray[np.float32]]:
        """The mask of each frame; see `PersonSegmenter.segment`."""
        for frame in frames:
            height, width = frame.shape[:2]
            corners = np.array([[0.0, 0.0], [width, 0.0], [0.0, height]])
            mask = self._model(crop(frame, corners, _SIDE, black=True))["mask"][0, :, :, 0]
            large = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
            yield np.asarray(large, np.float32).clip(0, 1)
