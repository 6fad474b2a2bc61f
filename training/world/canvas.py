"""An anti-aliased drawing surface: colour and subject mask from the same strokes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
_ONE = 1 << _SHIFT

cv2.setNumThreads(0)  # the drawing calls are tiny, and data workers fork


class Canvas:
    """A picture of ``height`` x ``width`` pixels, drawn at twice the size and averaged down.

    Coordinates are in pixels of the final picture, x to the right and y down. While ``subject`` is true, what is drawn
    counts as the person in :meth:`mask`.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        shape = (height * SUPERSAMPLING, width * SUPERSAMPLING)
        self._color = np.zeros((*shape, 3), np.uint8)
        self._mask = np.zeros(shape, np.uint8)
        self.subject = False

    def copy(self) -> Canvas:
        """A canvas with the same content, to draw on without changing this one."""
        twin = Canvas.__new__(Canvas)
        twin.height, twin.width, twin.subject = self.height, self.width, self.subject
        twin._color, twin._mask = self._color.copy(), self._mask.copy()
        return twin

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill a polygon."""
        fixed = np.round(np.asarray(points, np.float64) * (SUPERSAMPLING * _ONE)).astype(np.int32)
        cv2.fillPoly(self._color, [fixed], color, cv2.LINE_AA, _SHIFT)
        if self.subject:
            cv2.fillPoly(self._mask, [fixed], (255,), cv2.LINE_AA, _SHIFT)

    def ellipse(self, center: Point, radii: Point, color: Color) -> None:
        """Fill an ellipse with axes along x and y."""
        angles = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
        x, y = center[0] + radii[0] * np.cos(angles), center[1] + radii[1] * np.sin(angles)
        self.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), color)

    def limb(self, start: Point, end: Point, width: float, color: Color) -> None:
        """A thick line with round ends."""
        (x0, y0), (x1, y1) = start, end
        length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
        nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], color)
        for point in (start, end):
            self.ellipse(point, (width / 2, width / 2), color)

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Fill an axis-parallel rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def gradient(self, top: float, bottom: float, upper: Color, lower: Color) -> None:
        """Fill the full width between two heights with a vertical blend of two colours."""
        first = max(0, round(top * SUPERSAMPLING))
        last = min(self._color.shape[0], round(bottom * SUPERSAMPLING))
        if last <= first:
            return
        share = np.linspace(0.0, 1.0, last - first)[:, None]
        rows = np.asarray(upper, np.float64) * (1 - share) + np.asarray(lower, np.float64) * share
        self._color[first:last] = np.round(rows).astype(np.uint8)[:, None]

    def picture(self) -> NDArray[np.uint8]:
        """The colours, (height, width, 3) uint8 RGB."""
        return self._down(self._color)

    def mask(self) -> NDArray[np.uint8]:
        """How much of each pixel the person covers, (height, width) uint8, 255 = all of it."""
        return self._down(self._mask)

    def _down(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        small = cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)
