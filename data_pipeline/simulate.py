"""Cost of the engine and of the account by the number of rows, with stages that only sleep and score.

    python -m data_pipeline.simulate --out DIR --rows 10000 100000 1000000
    python -m data_pipeline.simulate --out DIR --rows 10000 100000 --engine ray

DIR gets simulated.json; the outputs of the simulated runs are removed again.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from contextanyone_core.cli.parsing import whole
from data_pipeline.config import PipelineSettings, SourceSettings
from data_pipeline.decisions.outputs import account_of, write_json, write_outputs
from data_pipeline.engine.local import run_local
from data_pipeline.engine.progress import Progress
from data_pipeline.engine.ray_data import run_ray
from data_pipeline.engine.work import Job
from data_pipeline.pixels.scores import HASH_SIDE
from data_pipeline.rows import Row
from data_pipeline.stage import Stage
from training.commands import Parser, output_folder, run_command

_ROWS_A_SOURCE, _FRAMES = 100, 10
_SLEEP = 1e-4  # seconds of each row in each stage
_WATCH = 0.5  # seconds between two looks at the processes
_MIB = 1 << 20


@dataclass(frozen=True)
class Numbers:
    """Sources that are numbers, with no file behind them."""

    count: int

    def names(self) -> list[str]:
        """The numbers, as words of equal length."""
        return [f"{number:07d}" for number in range(self.count)]

    def row(self, name: str, root: Path) -> Row:
        """A row that no video belongs to."""
        return Row(source=name, sha256=f"{int(name):064x}", video="none", stop=_FRAMES * _ROWS_A_SOURCE)


@dataclass(frozen=True)
class Cut(Stage):
    """A source becomes a hundred rows."""

    name: ClassVar[str] = "shots"

    def __call__(self, row: Row) -> list[Row]:
        """Spans of ten frames."""
        starts = range(0, row.stop or 0, _FRAMES)
        return [row.span(start, start + _FRAMES).scored("shots", frames=_FRAMES) for start in starts]


@dataclass(frozen=True)
class Score(Stage):
    """A score between 0 and 1 for each row."""

    name: ClassVar[str] = "score"

    def __call__(self, row: Row) -> Row:
        """The row with its score, after a sleep."""
        time.sleep(_SLEEP)
        return row.scored("score", value=(37 * int(row.source) + row.start) % 101 / 100)


@dataclass(frozen=True)
class Hash(Stage):
    """Hashes of frames that are not there; one row in a hundred has those of the row before it."""

    name: ClassVar[str] = "hashes"

    def __call__(self, row: Row) -> Row:
        """The row with its hashes, after a sleep."""
        time.sleep(_SLEEP)
        start = row.start - _FRAMES if row.start == _FRAMES * _ROWS_A_SOURCE // 2 else row.start
        bits = hashlib.shake_128(f"{row.source} {start}".encode()).digest(3 * HASH_SIDE**2 // 8)
        return row.labelled("hashes", frames=bits.hex())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="data_pipeline.simulate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of simulated.json, made if needed")
    parser.add_argument("--rows", type=whole(_ROWS_A_SOURCE, 10**8), nargs="+", required=True, help="hundreds of rows")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="processes, or Ray Data")
    parser.add_argument("--workers", type=whole(1, 1024), default=2, help="processes (2)")
    arguments = parser.parse_args(argv)
    return run_command("data_pipeline.simulate", lambda: _run(arguments))


def _run(arguments: Namespace) -> None:
    out, found = output_folder("--out", arguments.out), []
    for rows in arguments.rows:
        found.append(simulate(out / f"rows-{rows}", rows // _ROWS_A_SOURCE, arguments.engine, arguments.workers))
        write_json(out / "simulated.json", found)
        sys.stdout.write(json.dumps(found[-1]) + "\n")


def simulate(root: Path, sources: int, engine: str, workers: int) -> dict[str, object]:
    """Run so many sources through engine and account in a folder of their own, which is removed.

    Returns: rows and their fate, seconds of wall time and of the processors, the most files that a process had open
    and the most memory (MiB, resident) of this process and of its largest child.
    """
    shutil.rmtree(root, ignore_errors=True)
    job = Job(root, Numbers(sources), (Cut(root), Score(root), Hash(root)), row_seconds=3600)
    settings = PipelineSettings(
        chain="pixels",
        sources=SourceSettings(folder=root),
        source="none",
        license="none",
        filters={"score": {"min_value": 0.1, "max_value": 0.9}, "dedup": {"min_distance": 0.1}},
    )
    names, run = job.sources.names(), run_local if engine == "local" else run_ray
    seconds: dict[str, float] = {}
    try:
        root.mkdir(parents=True)
        with watched() as most:
            with timed(seconds, "engine"):
                for _ in run(job, names, workers, Progress(root / "progress.jsonl", sources, job.stages)):
                    pass
            with timed(seconds, "account"):
                account = account_of(job, settings, names)
                write_outputs(job, settings, account)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    size = {"engine": engine, "workers": workers, "sources": sources, "rows": account.funnel["rows"]}
    return size | {"kept": account.funnel["kept"], "dropped": account.funnel["dropped"]} | seconds | most


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add wall time, and time of the processors of this process and of its children that ended meanwhile."""
    wall, processors = time.monotonic(), _processor_seconds()
    yield
    seconds[f"{name}_seconds"] = round(time.monotonic() - wall, 1)
    seconds[f"{name}_processor_seconds"] = round(_processor_seconds() - processors, 1)


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The most open files and memory of this process and of the processes below it, looked at twice a second."""
    most = {"open_files": 0, "mebibytes": 0, "mebibytes_of_a_child": 0}
    stop, own = threading.Event(), psutil.Process()

    def look() -> None:
        while not stop.wait(_WATCH):
            for process in [own, *own.children(recursive=True)]:
                key = "mebibytes" if process == own else "mebibytes_of_a_child"
                try:
                    most["open_files"] = max(most["open_files"], process.num_fds())
                    most[key] = max(most[key], process.memory_info().rss // _MIB)
                except psutil.Error:  # it has ended
                    continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
