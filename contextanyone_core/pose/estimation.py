"""Protocols of a pose estimator and a person segmenter; any class with these methods can be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .sequence import BODY, Pixels, Points, PoseSequence


class PoseEstimator(Protocol):
    """Estimates one person's pose in pictures."""

    def estimate(self, frames: Iterable[Pixels]) -> Iterator[Points]:
        """The body in each frame of a clip, in order.

        Args:
            frames: uint8 (H, W, 3), upright RGB.

        Yields: (18, 3) of BODY_18: x and y in pixels of the frame, score from 0 to 1; zeros if nobody is found.
        """
        ...


class PersonSegmenter(Protocol):
    """Segments people in pictures."""

    def segment(self, frames: Iterable[Pixels]) -> Iterator[NDArray[np.float32]]:
        """The mask of people in each frame of a clip, in order.

        Args:
            frames: uint8 (H, W, 3), upright RGB.

        Yields: (H, W) from 0 (background) to 1 (person).
        """
        ...


def estimated(frames: Iterable[Pixels], fps: float, estimator: PoseEstimator) -> PoseSequence:
    """The poses of a clip at its own frame rate.

    Args:
        frames: uint8 (H, W, 3) of one size; read one at a time.

    Raises: InputError if there is no frame.
    """
    size = (1, 1)

    def noting_size() -> Iterator[Pixels]:
        nonlocal size
        for frame in frames:
            size = frame.shape[:2]
            yield frame

    bodies = list(estimator.estimate(noting_size()))
    return PoseSequence(np.array(bodies).reshape(-1, BODY, 3), size[1], size[0], fps)
