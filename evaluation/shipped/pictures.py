"""References as users give them: cropped, half hidden, in harsh light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.uint8]

_GREY = 128
_HIDDEN = 0.3  # share of the person's bounding box that is covered


def bust(picture: Picture, mask: Mask) -> Picture:
    """The upper 55 percent of the person's bounding box (head to waist), with a margin of a tenth of its width."""
    top, bottom, left, right = box(mask)
    margin = max(2, round(0.1 * (right - left)))
    rows = slice(max(top - margin, 0), top + round(0.55 * (bottom - top)))
    return picture[rows, max(left - margin, 0) : right + margin].copy()


def covered(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """A grey rectangle over 30 percent of the person's bounding box, of its proportions, somewhere inside it."""
    top, bottom, left, right = box(mask)
    height, width = (round(np.sqrt(_HIDDEN) * side) for side in (bottom - top, right - left))
    row = int(rng.integers(top, bottom - height + 1))
    column = int(rng.integers(left, right - width + 1))
    changed = picture.copy()
    changed[row : row + height, column : column + width] = _GREY
    return changed


def harsh(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """Light from one side: brightness from 0.25 to 1.9 across the person, warm where bright, clipped at white."""
    _, _, left, right = box(mask)
    share = np.clip((np.arange(picture.shape[1]) - left) / max(right - 1 - left, 1), 0, 1)
    share = share if rng.random() < 0.5 else 1 - share
    tint = 1 + share[:, None] * np.asarray([0.08, 0.0, -0.12])
    factors = (0.25 + 1.65 * share)[:, None] * tint
    return np.asarray(np.clip(picture * factors[None], 0, 255).round(), np.uint8)


def box(mask: Mask) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is at least half the person; the two ends are exclusive."""
    rows, columns = np.flatnonzero((mask > 127).any(1)), np.flatnonzero((mask > 127).any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
