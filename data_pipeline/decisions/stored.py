"""What a run has on disk, gone through part by part: no more than one source's rows are in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contextanyone_core.errors import InputError
from data_pipeline.engine.work import Job
from data_pipeline.rows import Dropped, Row, read_part, sorted_rows


def paths_of(job: Job, number: int, names: Sequence[str]) -> Iterator[Path]:
    """The parts of one stage that there are, in the order of sources."""
    return (path for name in sorted(names) if (path := job.part_path(number, name)).is_file())


def stale_sources(job: Job) -> int:
    """Of how many sources the last stage has parts by other settings or older code alone; 0 where any is current."""
    current = job.folders[-1]
    if any(current.glob("*.jsonl")):
        return 0
    folder = re.compile(rf"\d\d-{re.escape(job.stages[-1].name)}-[0-9a-f-]+")  # its place in the chain may be another
    older = [path for path in (job.root / "parts").glob("*") if folder.fullmatch(path.name)]
    return len({part.name for path in older for part in path.glob("*.jsonl")})


def require_current(job: Job) -> None:
    """Refuse a run whose rows are all of other settings or older code: its outputs would be written without a row.

    Raises:
        InputError: there are parts of the last stage, and none as this chain makes them.
    """
    if count := stale_sources(job):
        raise InputError(
            f"{job.root} holds {count} {'source' if count == 1 else 'sources'} of the stage {job.stages[-1].name} by "
            "other settings or older code, and none by these. Run the chain again with this --out (stages that did "
            "not change are kept), or go back to the code that made it; nothing was changed."
        )


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
