"""One source through the whole chain: a part file for each stage, written whole, read where it is already there."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from contextanyone_core.atomic_file import ENDING, PREFIX, is_disk_full, write_text
from data_pipeline.decisions.rules import Rule
from data_pipeline.engine.watch import Watch, last_words, watched
from data_pipeline.rows import Drop, Dropped, Part, Row, count_part, digest, read_part
from data_pipeline.sources import Sources
from data_pipeline.stage import Stage, UnavailableError, fingerprints

GATE = "gate."
"""How the reason of a row begins that the gate refused; the rule's name follows."""


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
        stages: for each stage the rows that came out of it, those that it computed in this run, and the seconds.
    """

    source: str
    rows: int
    computed: int
    stages: tuple[tuple[int, int, float], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Failed:
    """A source whose stage raised, or whose worker died, at every attempt.

    Attributes:
        unavailable: whether it is no fault of the source, but of what every source needs.
    """

    source: str
    stage: str
    error: str
    trace: str
    unavailable: bool = False


@dataclass(frozen=True)
class Job:
    """What a worker needs: the chain, the sources, the output folder, and how to run.

    Attributes:
        retries: attempts after the first, `backoff` the seconds before them.
        gate: what breaks one of these rules enters no expensive stage.
        row_seconds: a row that takes longer ends its process; None is no limit, for stages run in this process.
    """

    root: Path
    sources: Sources
    stages: tuple[Stage, ...]
    selection: Selection = Selection()
    retries: int = 2
    backoff: float = 0.2
    gate: tuple[Rule, ...] = ()
    row_seconds: float | None = None

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The folder of each stage's parts; the gate is in the name of those behind it, but in no row's key."""
        gate = digest([[rule.name, rule.value] for rule in self.gate])[:8]
        marks = fingerprints(self.stages)
        names = [
            f"{at:02d}-{stage.name}-{mark}" for at, (stage, mark) in enumerate(zip(self.stages, marks, strict=True))
        ]
        gated = [self.gate and behind for behind in self.behind_the_gate]
        return tuple(
            self.root / "parts" / (f"{name}-{gate}" if apart else name)
            for name, apart in zip(names, gated, strict=True)
        )

    @cached_property
    def behind_the_gate(self) -> tuple[bool, ...]:
        """Of each stage whether it or one before it is expensive."""
        return tuple(accumulate((stage.expensive for stage in self.stages), lambda before, one: before or one))

    def part_path(self, number: int, source: str) -> Path:
        """Path of the part of a stage and a source."""
        return self.folders[number] / f"{source}.jsonl"

    def is_done(self, source: str) -> bool:
        """Whether a run has nothing to compute for a source."""
        there = (self.part_path(number, source).is_file() for number in reversed(range(len(self.stages))))
        return self.selection.first is None and all(there)

    def running_path(self, source: str) -> Path:
        """Path of the note of what is being done with a source."""
        return self.root / "running" / source

    def failure_path(self, source: str) -> Path:
        """Path of the traceback of a source that failed."""
        return self.root / "failed" / f"{source}.json"


def run_source(job: Job, source: str) -> Done | Failed:
    """Take one source through the chain. What a stage raises is a `Failed`, and on disk.

    Raises:
        OSError: the disk is full, which is no fault of the source.
    """
    for attempt in range(job.retries + 1):
        stage = ["source"]
        try:
            with watched(job.running_path(source), job.row_seconds) as watch:
                done = _through(job, source, stage, watch)
        except Exception as error:  # a stage may raise anything, and no other source may suffer from it
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            what, unavailable = f"{type(error).__name__}: {error}", isinstance(error, UnavailableError)
            failed = Failed(source, stage[0], what, traceback.format_exc(), unavailable)
            if attempt < job.retries:
                time.sleep(job.backoff * 2**attempt)
        else:
            job.failure_path(source).unlink(missing_ok=True)
            return done
    write_failure(job, failed)
    return failed


def died(job: Job, source: str) -> Failed:
    """The failure of a source whose process died at every attempt, kept as any other."""
    failed = Failed(source, *last_words(job.running_path(source)))
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
    for note in (job.root / "running").glob("*"):
        if note.name in sources:
            note.unlink(missing_ok=True)
    for folder in job.folders:
        for hidden in folder.glob(f"{PREFIX}*{ENDING}"):
            names = [path.stem for path in (hidden / "written").glob("*.jsonl")]
            if names and all(name in sources for name in names):  # another machine may be writing other sources
                shutil.rmtree(hidden, ignore_errors=True)


def _through(job: Job, source: str, at: list[str], watch: Watch) -> Done:
    names = [stage.name for stage in job.stages]
    last = len(names) if job.selection.last is None else names.index(job.selection.last) + 1
    anew = len(names) if job.selection.first is None else names.index(job.selection.first)
    for number in reversed(range(anew, last)):  # gone first: what is killed in between is computed by the next run
        job.part_path(number, source).unlink(missing_ok=True)
    part, there, account = None, None, list[tuple[int, int, float]]()
    for number in range(last):
        at[0] = names[number]
        path = job.part_path(number, source)
        if number < anew and path.is_file():
            part, there = None, path  # read only where the next stage is to be computed
            account.append((count_part(path)[0], 0, 0.0))
            continue
        began = time.monotonic()
        if part is None:
            watch.stage("source")
            part = Part((job.sources.row(source, job.root),)) if there is None else read_part(there)
        known = {} if number >= anew or job.stages[number].compares else _known(job, number, source)
        part, computed = _run_stage(job, number, part.rows, known, watch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, part.text())
        account.append((len(part.rows), computed, time.monotonic() - began))
    return Done(source, account[-1][0], sum(computed for _, computed, _ in account), tuple(account))


Answer = Row | Drop | list[Row]


def _run_stage(
    job: Job, number: int, rows: tuple[Row, ...], known: dict[str, Answer], watch: Watch
) -> tuple[Part, int]:
    """One stage over the rows of a source, and how many of them were computed.

    Args:
        known: answers that there are already, by the keys of the rows that they are about.
    """
    stage, mark = job.stages[number], fingerprints(job.stages)[number]
    answers: dict[str, Answer] = {
        row.key: Drop(*refusal) for row in rows if stage.expensive and (refusal := _refused(row, job.gate))
    }
    entering = tuple(row for row in rows if row.key not in answers)
    computed: tuple[Row, ...]
    if stage.compares:
        computed = entering
        watch.stage(stage.name, len(rows))
        answers |= zip((row.key for row in computed), stage.over_source(computed), strict=True)
    else:
        answers |= {row.key: known[row.key] for row in entering if row.key in known}
        computed = tuple(row for row in entering if row.key not in answers)
        watch.stage(stage.name)
        for row in computed:
            watch.row()
            answers[row.key] = stage(row)
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for row in rows:
        answer = answers[row.key]
        if isinstance(answer, Drop):
            dropped.append(Dropped(row, stage.name, answer))
            continue
        kept += answer if isinstance(answer, list) else [answer]
    keyed = [row.model_copy(update={"key": digest(row.sha256, row.start, row.stop, mark)}) for row in kept]
    return Part(tuple(keyed), tuple(dropped)), len(computed)


def _refused(row: Row, gate: tuple[Rule, ...]) -> tuple[str, dict[str, float]] | None:
    """The reason and the score by which the gate refuses a row; scores that it does not have yet refuse nothing."""
    for rule in gate:
        score = row.scores.get(rule.score)
        if score is not None and not rule.keeps(score):
            return f"{GATE}{rule.name}", {rule.score: score}
    return None


def _known(job: Job, number: int, source: str) -> dict[str, Answer]:
    """What a stage behind the gate answered when the gate was another one, by the keys of the rows asked about."""
    if not job.behind_the_gate[number] or number == 0:
        return {}
    own, before = job.folders[number], fingerprints(job.stages)[number - 1]
    known: dict[str, Answer] = {}
    for folder in sorted(
        own.parent.glob(f"{number:02d}-{job.stages[number].name}-{fingerprints(job.stages)[number]}*")
    ):
        path = folder / f"{source}.jsonl"
        if folder == own or not path.is_file():
            continue
        part = read_part(path)
        known |= {digest(row.sha256, row.start, row.stop, before): row for row in part.rows}
        known |= {found.row.key: found.drop for found in part.dropped if not found.drop.reason.startswith(GATE)}
    return known
