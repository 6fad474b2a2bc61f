"""Who is who: tracks within a shot, clusters over sources. Vectors live here and nowhere on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.models.protocols import Box, Seen

_OVERLAP = 0.3  # intersection over union of one person's boxes in frames that follow one another
_BLOCK = 128  # vectors compared with all before them at once


@dataclass(frozen=True)
class Found:
    """A person in a picture: the box, the detector's score, and the embedder's vector where there is one."""

    box: Box
    score: float
    vector: NDArray[np.float32] | None = None

    @property
    def area(self) -> float:
        """Share of the picture."""
        x0, y0, x1, y1 = self.box
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union, 0 to 1."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, across) * max(0.0, down)
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - both
    return both / whole if whole > 0 else 0.0


def tracked(frames: Sequence[Sequence[Found]], limit: float) -> list[list[Seen]]:
    """Greedy tracks: the most overlapping boxes first, then the nearest vectors within `limit`, then a new track."""
    last: dict[str, Found] = {}
    tracks: list[list[Seen]] = []
    for people in frames:
        named: dict[int, str] = {}
        for costs in (_by_overlap, _by_vector):
            pairs = sorted(
                (cost, number, name)
                for number, one in enumerate(people)
                for name, before in last.items()
                if (cost := costs(one, before, limit)) is not None
            )
            for _, number, name in pairs:
                if number not in named and name not in named.values():
                    named[number] = name
        for number, one in enumerate(people):
            name = named.setdefault(number, f"person-{len(last)}")
            last[name] = (
                one if one.vector is not None or name not in last else Found(one.box, one.score, last[name].vector)
            )
        tracks.append([Seen(one.box, named[number]) for number, one in enumerate(people)])
    return tracks


def _by_overlap(one: Found, before: Found, limit: float) -> float | None:
    share = overlap(one.box, before.box)
    return -share if share >= _OVERLAP else None


def _by_vector(one: Found, before: Found, limit: float) -> float | None:
    if one.vector is None or before.vector is None:
        return None
    distance = float(np.linalg.norm(one.vector - before.vector))
    return distance if distance < limit else None


def cluster(vectors: Sequence[NDArray[np.float32] | None], limit: float, names: Sequence[str]) -> list[str]:
    """Single linkage: vectors nearer than `limit` share a cluster, which has the name of its first. None is alone.

    All pairs are compared, as products of matrices: 10^5 vectors of 128 numbers take 2.6 TFLOP and, beside
    themselves, 50 MB.
    """
    known = [number for number, vector in enumerate(vectors) if vector is not None]
    table = np.stack([vector for vector in vectors if vector is not None]) if known else np.empty((0, 1), np.float32)
    squares = (table**2).sum(axis=1)
    first = np.arange(len(known))  # of each vector's cluster
    for start in range(0, len(known), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squares[block, None] + squares[: block.stop] - 2 * table[block] @ table[: block.stop].T
        for number, near in enumerate(distances < limit**2, start):
            joined = np.unique(first[:number][near[:number]])
            if len(joined):
                first[number] = joined[0]
            if len(joined) > 1:
                first[:number][np.isin(first[:number], joined[1:])] = joined[0]
    found = list(names)
    for number, one in zip(known, first, strict=True):
        found[number] = names[known[one]]
    return found
