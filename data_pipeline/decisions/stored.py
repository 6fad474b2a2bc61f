"""What a run has on disk, gone through part by part: no more than one source's rows are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.engine.work import Job
from data_pipeline.rows import Dropped, Row, read_part, sorted_rows


def paths_of(job: Job, number: int, names: Sequence[str]) -> Iterator[Path]:
    """The parts of one stage that there are, in the order of sources."""
    return (path for name in sorted(names) if (path := job.part_path(number, name)).is_file())


@dataclass(frozen=True)
class StoredRows:
    """The rows of a chain's last stage, in the order of every output: by source, then by span."""

    job: Job
    names: Sequence[str]

    def __iter__(self) -> Iterator[Row]:
        """Each row, read anew."""
        for path in paths_of(self.job, len(self.job.stages) - 1, self.names):
            yield from sorted_rows(read_part(path).rows)


@dataclass(frozen=True)
class StoredDrops:
    """What the stages dropped, stage by stage."""

    job: Job
    names: Sequence[str]

    def __iter__(self) -> Iterator[Dropped]:
        """Each row that was dropped, read anew."""
        for number in range(len(self.job.stages)):
            for path in paths_of(self.job, number, self.names):
                yield from read_part(path, dropped_only=True).dropped
