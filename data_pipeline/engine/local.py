"""Processes of this machine. A worker that dies takes one source with it at most, and no other."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2

from data_pipeline.engine.work import Done, Failed, Job, remove_remains, run_source, write_failure

_TASKS_OF_A_WORKER = 256  # then a new process takes its place: libraries that leak do not add up
_EVERY = 2.0  # seconds between lines of progress

_job: Job | None = None  # a worker's own


@dataclass
class Progress:
    """`progress.jsonl`: sources done, failed, rows computed, rows a second, seconds left."""

    path: Path
    total: int
    done: int = 0
    failed: int = 0
    rows: int = 0
    _started: float = 0.0
    _written: float = 0.0

    def add(self, outcome: Done | Failed) -> None:
        """Count a source, and write a line if the last is a while ago."""
        self._started = self._started or time.monotonic()
        self.done += 1
        self.failed += isinstance(outcome, Failed)
        self.rows += outcome.computed if isinstance(outcome, Done) else 0
        if time.monotonic() - self._written >= _EVERY or self.done == self.total:
            self.write()

    def write(self) -> None:
        """Append one line."""
        self._written = time.monotonic()
        elapsed = max(self._written - self._started, 1e-6)
        line = {
            "done": self.done,
            "total": self.total,
            "failed": self.failed,
            "rows": self.rows,
            "rows_per_s": round(self.rows / elapsed, 2),
            "eta_s": round(elapsed / self.done * (self.total - self.done), 1) if self.done else None,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def run_local(job: Job, names: Sequence[str], workers: int, progress: Progress) -> Iterator[Done | Failed]:
    """Take every source through the chain in processes; outcomes come as they end.

    A source that was in a worker's hands when one died is tried again alone: if its worker dies again, it has failed.
    """
    progress._started = time.monotonic()
    waiting, suspects = deque(names), deque[str]()
    remove_remains(job, set(names))
    while waiting or suspects:
        if suspects:
            todo, count = deque([suspects.popleft()]), 1
            alone = True
        else:
            todo, count, alone = waiting, workers, False
        for outcome in _until_broken(job, todo, count):
            if isinstance(outcome, str):  # its worker died
                if not alone:
                    suspects.append(outcome)
                    continue
                outcome = Failed(
                    outcome, "worker", "the process died: killed, out of memory, or a fault in a library", ""
                )
                write_failure(job, outcome)
            progress.add(outcome)
            yield outcome
        remove_remains(job, set(suspects))


def _until_broken(job: Job, todo: deque[str], workers: int) -> Iterator[Done | Failed | str]:
    """Outcomes until nothing is left or a worker dies; then the names of those that were being worked on."""
    running: dict[Future[Done | Failed], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=_begin, initargs=(job,), max_tasks_per_child=_TASKS_OF_A_WORKER
    ) as pool:
        while todo or running:
            while todo and len(running) < 2 * workers:
                try:
                    running[pool.submit(_work, todo[0])] = todo[0]
                except BrokenProcessPool:
                    break
                todo.popleft()
            if not running:  # it broke while nothing was given to it: the caller starts another
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = False
            for future in ended:
                name = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    broken = True
                    yield name
                else:
                    yield future.result()
            if broken:
                yield from running.values()
                return


def _begin(job: Job) -> None:
    global _job  # noqa: PLW0603  # the worker's own; every task would carry it otherwise
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _job = job


def _end_with_the_parent() -> None:
    """A worker whose parent is killed would wait for work for ever, and still write."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(source: str) -> Done | Failed:
    if _job is None:
        raise RuntimeError("the worker has no job")
    return run_source(_job, source)
