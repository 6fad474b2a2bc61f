"""The order of training: the rows of a step, as a function of (seed, epoch) only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contextanyone_core.errors import InputError
from training.data.buckets import Bucket
from training.randomness import numpy_generator


class BucketSampler:
    """Batches of rows of one bucket each, in an order that depends on the seed and the epoch only.

    Every row comes at least once in an epoch. Where a bucket's rows do not fill its last batch, rows from the start of
    its order come a second time; none is left out. A process takes every `world`-th row of a batch, so all have the
    same bucket at the same step, and together they see what one process alone would.

    Args:
        buckets: the bucket of every row.
        batch: rows in a batch of all processes together, by bucket.
        seed: of the run.
        rank, world: this process and how many there are.
        among: the rows that are drawn from; None is all of them.

    Raises:
        ValueError: a batch is no multiple of the number of processes, or there is no row.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        batch: Mapping[Bucket, int],
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        among: Sequence[int] | None = None,
    ) -> None:
        if uneven := [bucket for bucket, count in batch.items() if count % world]:
            raise ValueError(f"The batch of {uneven[0]} is {batch[uneven[0]]}, no multiple of {world} processes.")
        drawn = range(len(buckets)) if among is None else among
        if not drawn:
            raise ValueError("There is no row to draw from.")
        self._rows: dict[Bucket, list[int]] = {}
        for row in drawn:
            self._rows.setdefault(buckets[row], []).append(row)
        self._batch, self._seed, self._rank, self._world = dict(batch), seed, rank, world
        self.steps_per_epoch = sum(-(-len(rows) // self._batch[bucket]) for bucket, rows in self._rows.items())
        self._epochs: dict[int, list[list[int]]] = {}  # the last two that were asked for; worker processes get a pickle

    def rows(self, step: int) -> list[int]:
        """This process's rows of a step, counted from 0 over all epochs."""
        return self.all_rows(step)[self._rank :: self._world]

    def all_rows(self, step: int) -> list[int]:
        """The rows of a step of all processes together."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            self._epochs = dict([*self._epochs.items()][-1:]) | {epoch: self._draw_epoch(epoch)}
        return self._epochs[epoch]

    def _draw_epoch(self, epoch: int) -> list[list[int]]:
        batches = []
        for bucket, rows in sorted(self._rows.items()):
            size = self._batch[bucket]
            order = [rows[i] for i in numpy_generator(self._seed, epoch, f"order {bucket}").permutation(len(rows))]
            filled = order + [order[i % len(order)] for i in range(-len(order) % size)]
            batches += [filled[start : start + size] for start in range(0, len(filled), size)]
        shuffled = numpy_generator(self._seed, epoch, "order of batches").permutation(len(batches))
        return [batches[i] for i in shuffled]


class StagedSampler:
    """Pictures in the first batches, then longer clips: each stage in the order of a `BucketSampler` of its rows.

    Args:
        buckets, batch, seed, rank, world: as of `BucketSampler`.
        stills: how many batches are of pictures.

    Raises:
        InputError: one of the two stages has no row.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        batch: Mapping[Bucket, int],
        seed: int,
        rank: int,
        world: int,
        *,
        stills: int,
    ) -> None:
        self._first_clips = stills
        stages = []
        for name, single in (("of one frame", True), ("of more than one frame", False)):
            among = [row for row, bucket in enumerate(buckets) if (bucket.num_frames == 1) == single]
            if not among:
                raise InputError(
                    f"part.stills_steps divides the run into pictures and clips, and no row {name} can be used; add "
                    "such rows to the manifest, or leave it out."
                )
            stages.append(BucketSampler(buckets, batch, seed, rank, world, among=among))
        self._stills, self._clips = stages
        self.steps_per_epoch = self._stills.steps_per_epoch + self._clips.steps_per_epoch

    def rows(self, step: int) -> list[int]:
        """This process's rows of a batch, counted from 0 over the whole run."""
        if step < self._first_clips:
            return self._stills.rows(step)
        return self._clips.rows(step - self._first_clips)
