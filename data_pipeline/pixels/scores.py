"""Cheap scores of a shot's pixels. Each stage measures; no threshold is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.pixels.decode import Frames, grey, pairs_of
from data_pipeline.rows import Drop, Row
from data_pipeline.stage import Stage

HASH_SIDE = 16  # 256 bits
_BLACK = 20  # of 255: what compression leaves of black


@dataclass(frozen=True)
class PixelStage(Stage):
    """A stage that looks at pairs of neighbouring frames. Drops `no_frames`."""

    def __call__(self, row: Row) -> Row | Drop:
        """The row with the stage's scores."""
        pairs = pairs_of(self.place(row.video), row.start, row.stop)
        if not pairs:
            return Drop("no_frames")
        return row.scored(self.name, **self.measure(pairs, row.scores["probe.fps"]))

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """The scores of a shot."""
        raise NotImplementedError


@dataclass(frozen=True)
class Blur(PixelStage):
    """`sharpness`: variance of the Laplacian over that of the picture, median over frames; light does not count."""

    name: ClassVar[str] = "blur"

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        values = []
        for first, _ in pairs:
            luma = grey(first)
            values.append(float(cv2.Laplacian(luma, cv2.CV_32F).var()) / max(float(luma.var()), 1.0))
        return {"sharpness": float(np.median(values))}


@dataclass(frozen=True)
class Dark(PixelStage):
    """`brightness`: the 90th percentile of luma, 0 to 1, median over frames: a night with lamps is not dark."""

    name: ClassVar[str] = "dark"

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        return {"brightness": float(np.median([np.percentile(grey(first), 90) for first, _ in pairs])) / 255}


@dataclass(frozen=True)
class Static(PixelStage):
    """`change`: the largest difference (99th percentile of pixels, 0 to 1) of any sampled frame from the first."""

    name: ClassVar[str] = "static"

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        first = grey(pairs[0][0])
        return {"change": max(float(np.percentile(np.abs(grey(last) - first), 99)) for _, last in pairs) / 255}


@dataclass(frozen=True)
class Motion(PixelStage):
    """`flow`: median over frames of the median Farneback flow, in diagonals a second: that of the camera."""

    name: ClassVar[str] = "motion"

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        height, width = pairs[0][0].shape[:2]
        values = []
        for first, second in pairs:
            flow = cv2.calcOpticalFlowFarneback(
                np.asarray(grey(first), np.uint8), np.asarray(grey(second), np.uint8), None, 0.5, 3, 15, 3, 5, 1.2, 0
            )  # type: ignore[call-overload, unused-ignore]  # None stands for no first guess
            values.append(float(np.median(np.linalg.norm(flow, axis=-1))))
        return {"flow": float(np.median(values)) * fps / float(np.hypot(height, width))}


@dataclass(frozen=True)
class Letterbox(PixelStage):
    """`share`: of the picture that black bars at its edges cover in every frame."""

    name: ClassVar[str] = "letterbox"

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        brightest = np.max([grey(first) for first, _ in pairs], axis=0)
        down, across = (np.percentile(brightest, 98, axis=axis) <= _BLACK for axis in (1, 0))
        if down.all():  # nothing but black: dark, not barred
            return {"share": 0.0}
        left = (len(down) - _edges(down)) * (len(across) - _edges(across))
        return {"share": 1 - left / brightest.size}


def _edges(black: NDArray[np.bool_]) -> int:
    """How many lines are black at both edges together; a bar at one edge alone is scenery."""
    light = np.flatnonzero(~black)
    before, after = int(light[0]), len(black) - 1 - int(light[-1])
    return before + after if min(before, after) > 0 else 0


@dataclass(frozen=True)
class Text(PixelStage):
    """`area`: share of the picture under burnt-in text: thin strokes, white or black, that stay where they are.

    Text of the scene moves with the camera or is covered by people; what is burnt in persists. A line of text has many
    strokes side by side, which tells it from an edge.
    """

    name: ClassVar[str] = "text"
    stroke: float = 0.08
    contrast: float = 90.0
    min_strokes: int = 6

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        height, width = pairs[0][0].shape[:2]
        side = max(3, round(self.stroke * min(height, width)) | 1)
        kernel = np.ones((side, side), np.uint8)
        lasting = np.full((height, width), 255.0, np.float32)
        for first, _ in pairs:
            dim = first.min(axis=2).astype(np.float32)  # white is high in all three colours
            lasting = np.minimum(lasting, np.asarray(cv2.morphologyEx(dim, cv2.MORPH_TOPHAT, kernel)))
        strokes = (lasting >= self.contrast).astype(np.uint8)
        lines = cv2.dilate(strokes, np.ones((1, side), np.uint8))
        count, _, boxes, _ = cv2.connectedComponentsWithStats(lines)
        areas = []
        for x, y, w, h, _ in boxes[1:count]:
            if w >= 2 * h and self._strokes(strokes[y : y + h, x : x + w]) >= self.min_strokes:
                areas.append(int(w) * int(h))
        return {"area": sum(areas) / (height * width)}

    @staticmethod
    def _strokes(box: NDArray[np.uint8]) -> int:
        """The most strokes that any line of a box crosses."""
        padded = np.pad(box.astype(np.int8), ((0, 0), (1, 0)))
        return int((np.diff(padded, axis=1) > 0).sum(axis=1).max())


@dataclass(frozen=True)
class Hashes(Stage):
    """Perceptual hashes (256 bits) of the first, middle and last frame, as the label `hashes.frames`."""

    name: ClassVar[str] = "hashes"

    def __call__(self, row: Row) -> Row | Drop:
        """The row with the label."""
        pairs = pairs_of(self.place(row.video), row.start, row.stop)
        if not pairs:
            return Drop("no_frames")
        chosen = [pairs[0][0], pairs[len(pairs) // 2][0], pairs[-1][0]]
        return row.labelled(self.name, frames=" ".join(perceptual_hash(frame) for frame in chosen))


def perceptual_hash(picture: Frames) -> str:
    """256 bits of a picture's coarse structure, hexadecimal."""
    return str(imagehash.phash(Image.fromarray(picture), hash_size=HASH_SIDE))


def hash_distance(first: str, second: str) -> float:
    """The share of bits that differ, 0 to 1; about 0.5 for pictures that have nothing in common."""
    return (int(first, 16) ^ int(second, 16)).bit_count() / HASH_SIDE**2
