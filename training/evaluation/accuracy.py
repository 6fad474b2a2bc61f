"""Shares of attributes read right, with confidence intervals by bootstrap over characters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.probe import Reading
from training.world import ATTRIBUTES

Right = NDArray[np.bool_]
"""(characters, frames, attributes): whether the probe found what was requested."""

_RESAMPLES = 2000


def chance() -> dict[str, Any]:
    """Accuracy of guessing, per attribute and on average: test characters draw every value equally often."""
    per_attribute = {name: 1 / len(values) for name, values in ATTRIBUTES.items()}
    return {"mean": float(np.mean(list(per_attribute.values()))), "per_attribute": per_attribute}


def attributes_right(reading: Reading, labels: NDArray[np.int64]) -> Right:
    """Compare what was read with labels (characters, attributes)."""
    read = np.stack([reading.frames[name].numpy() for name in ATTRIBUTES], -1)
    return np.asarray(read == labels[:, None, :], np.bool_)


def summary(right: Right) -> dict[str, Any]:
    """Mean over attributes and frames, its 95 % interval, and the mean by attribute and by frame."""
    low, high = confidence(right.mean((1, 2)))
    return {
        "mean": float(right.mean()),
        "ci95": [low, high],
        "per_attribute": dict(zip(ATTRIBUTES, right.mean((0, 1)).tolist(), strict=True)),
        "by_frame": right.mean((0, 2)).tolist(),
        "n": len(right),
    }


def confidence(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of one value per character, by bootstrap; the same values give the same interval."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def confidence_of_share(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> tuple[float, float]:
    """95 % interval of sum(parts) / sum(wholes), a count of each per character, by bootstrap over them as above."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(parts), size=(_RESAMPLES, len(parts)))
    low, high = np.percentile(parts[drawn].sum(1) / wholes[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def drift(right: Right) -> dict[str, float]:
    """Accuracy on the first and on the last frame, and how many percentage points the last one is lower."""
    first, last = float(right[:, 0].mean()), float(right[:, -1].mean())
    return {"first": first, "last": last, "points": 100 * (first - last)}


def scene_accuracy(reading: Reading, labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy of the action per clip, of place and light per frame; labels (clips, 3) are action, place, light."""
    shares = {
        name: float((reading.frames[name].numpy() == labels[:, index, None]).mean())
        for index, name in ((1, "place"), (2, "light"))
    }
    if reading.action is not None:
        shares = {"action": float((reading.action.numpy() == labels[:, 0]).mean()), **shares}
    return shares
