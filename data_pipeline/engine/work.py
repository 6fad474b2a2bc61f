"""One source through the whole chain: a part file for each stage, written whole, read where it is already there."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from contextanyone_core.atomic_file import ENDING, PREFIX, write_text
from data_pipeline.rows import Drop, Dropped, Part, Row, digest, read_part
from data_pipeline.sources import Sources
from data_pipeline.stage import Stage, fingerprints


@dataclass(frozen=True)
class Selection:
    """Which stages are computed: all that have no part yet, and those that are to be recomputed.

    Attributes:
        first: recomputed from this stage on, whatever parts there are. None: nothing is recomputed.
        last: the last stage; None is the chain's last.
    """

    first: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class Done:
    """A source that went through: rows at the end, and rows that any stage computed in this run.

    Attributes:
        stages: for each stage the rows that came out of it, and the seconds that it took in this run.
    """

    source: str
    rows: int
    computed: int
    stages: tuple[tuple[int, float], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Failed:
    """A source whose stage raised, or whose worker died, at every attempt."""

    source: str
    stage: str
    error: str
    trace: str


@dataclass(frozen=True)
class Job:
    """What a worker needs: the chain, the sources, the output folder, attempts after the first, seconds between."""

    root: Path
    sources: Sources
    stages: tuple[Stage, ...]
    selection: Selection = Selection()
    retries: int = 2
    backoff: float = 0.2

    def part_path(self, number: int, source: str) -> Path:
        """Path of the part of a stage and a source."""
        stage, mark = self.stages[number], fingerprints(self.stages)[number]
        return self.root / "parts" / f"{number:02d}-{stage.name}-{mark}" / f"{source}.jsonl"

    def failure_path(self, source: str) -> Path:
        """Path of the traceback of a source that failed."""
        return self.root / "failed" / f"{source}.json"


def run_source(job: Job, source: str) -> Done | Failed:
    """Take one source through the chain. Never raises for what a stage does: that is a `Failed`, and on disk."""
    for attempt in range(job.retries + 1):
        stage = ["source"]
        try:
            done = _through(job, source, stage)
        except Exception as error:  # a stage may raise anything, and no other source may suffer from it
            failed = Failed(source, stage[0], f"{type(error).__name__}: {error}", traceback.format_exc())
            if attempt < job.retries:
                time.sleep(job.backoff * 2**attempt)
        else:
            job.failure_path(source).unlink(missing_ok=True)
            return done
    write_failure(job, failed)
    return failed


def write_failure(job: Job, failed: Failed) -> None:
    """Keep the traceback; the next run tries the source again."""
    path = job.failure_path(failed.source)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"source": failed.source, "stage": failed.stage, "error": failed.error, "traceback": failed.trace}
    write_text(path, json.dumps(found, indent=1) + "\n")


def remove_remains(job: Job, sources: Collection[str]) -> None:
    """Remove what killed workers left half-written of these sources; no worker may be using them."""
    for number in range(len(job.stages)):
        for hidden in job.part_path(number, "").parent.glob(f"{PREFIX}*{ENDING}"):
            names = [path.stem for path in (hidden / "written").glob("*.jsonl")]
            if names and all(name in sources for name in names):  # another machine may be writing other sources
                shutil.rmtree(hidden, ignore_errors=True)


def _through(job: Job, source: str, at: list[str]) -> Done:
    names = [stage.name for stage in job.stages]
    last = len(names) if job.selection.last is None else names.index(job.selection.last) + 1
    anew = len(names) if job.selection.first is None else names.index(job.selection.first)
    part, computed, marks = None, 0, fingerprints(job.stages)
    account: list[tuple[int, float]] = []
    for number in range(last):
        at[0] = names[number]
        path = job.part_path(number, source)
        if number < anew and path.is_file():
            part = read_part(path)
            account.append((len(part.rows), 0.0))
            continue
        began = time.monotonic()
        rows = part.rows if part is not None else (job.sources.row(source, job.root),)
        part = run_stage(job.stages[number], rows, marks[number])
        computed += len(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, part.text())
        account.append((len(part.rows), time.monotonic() - began))
    return Done(source, account[-1][0], computed, tuple(account))


def run_stage(stage: Stage, rows: tuple[Row, ...], mark: str) -> Part:
    """One stage over the rows of a source. `mark` is the stage's fingerprint and goes into the keys."""
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for row, answer in zip(rows, stage.over_source(rows), strict=True):
        if isinstance(answer, Drop):
            dropped.append(Dropped(row, stage.name, answer))
            continue
        kept += answer if isinstance(answer, list) else [answer]
    keyed = [row.model_copy(update={"key": digest(row.sha256, row.start, row.stop, mark)}) for row in kept]
    return Part(tuple(keyed), tuple(dropped))
