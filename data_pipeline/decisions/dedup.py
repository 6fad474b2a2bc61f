"""Near-duplicates by perceptual hashes, in time that grows with the rows and not with their square."""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import NDArray

from data_pipeline.pixels.scores import HASH_SIDE
from data_pipeline.rows import Row

_FRAMES = 3
_BITS = _FRAMES * HASH_SIDE**2
_ALL = 4096  # kept rows up to this number are all compared with
_TABLES = 32
_MISSED = 0.001  # chance that a pair exactly as far apart as the bound shares no bucket
_MOST_BITS = 20  # of a bucket's number
_NONE = -1


class KeptHashes:
    """The hashes of the rows that are kept, found by locality-sensitive hashing (bit sampling, Indyk and Motwani 1998).

    Up to 4,096 kept rows each new one is compared with all of them: exact. Beyond that it is compared with those that
    share one of 32 buckets with it; a bucket is a draw of the hash's bits, so many that a pair at the bound itself is
    missed once in a thousand times, and a nearer one far more rarely. The draw is fixed: the same rows in the same
    order give the same answer. 230 bytes of memory for a kept row.

    Attributes:
        compared: comparisons so far.
    """

    def __init__(self, distance: float) -> None:
        """An empty set.

        Args:
            distance: the share of bits by which kept rows must differ, 0 to 1.
        """
        self.compared = 0
        self._count = 0
        apart = min(max(distance, 0.01), 0.99)
        bits = int(log(1 - _MISSED ** (1 / _TABLES)) / log(1 - apart))
        bits = min(max(bits, 1), _MOST_BITS)
        rng = np.random.default_rng(0)
        self._drawn = np.stack([rng.permutation(_BITS)[:bits] for _ in range(_TABLES)])
        self._weights = 1 << np.arange(bits)
        self._first = np.full((_TABLES, 1 << bits), _NONE, np.int32)  # the newest row of each bucket,
        self._before = np.empty((256, _TABLES), np.int32)  # and the one before each row in the same bucket
        self._kept = np.empty((256, _BITS // 8), np.uint8)

    def nearest(self, row: Row) -> float:
        """The distance (0 to 1) to the nearest kept row, 1 where none was compared.

        Two rows are as far apart as the mean over their first, middle and last frames.
        """
        bits = _bits(row)
        others = self._kept[: self._count] if self._count <= _ALL else self._kept[self._sharing(self._buckets(bits))]
        self.compared += len(others)
        return float(np.bitwise_count(others ^ bits).sum(axis=1).min()) / _BITS if len(others) else 1.0

    def keep(self, row: Row) -> None:
        """Add a row to those that are kept."""
        if self._count == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
            self._before = np.concatenate([self._before, np.empty_like(self._before)])
        bits, tables = _bits(row), np.arange(_TABLES)
        buckets = self._buckets(bits)
        self._kept[self._count] = bits
        self._before[self._count] = self._first[tables, buckets]
        self._first[tables, buckets] = self._count
        self._count += 1

    def _buckets(self, bits: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The row's bucket in each table."""
        return np.asarray(np.unpackbits(bits)[self._drawn] @ self._weights, np.int64)

    def _sharing(self, buckets: NDArray[np.int64]) -> NDArray[np.int32]:
        """The kept rows that are in one of the buckets."""
        tables = np.arange(_TABLES)
        at, found = self._first[tables, buckets], []
        while len(at):
            there = at != _NONE
            tables, at = tables[there], at[there]
            found.append(at)
            at = self._before[at, tables]
        return np.unique(np.concatenate(found))


def _bits(row: Row) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(row.labels["hashes.frames"].replace(" ", "")), np.uint8)
