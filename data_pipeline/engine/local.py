"""Processes of this machine. A worker that dies takes one source with it at most, and no other."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from data_pipeline.engine.progress import Progress
from data_pipeline.engine.slots import take_slot
from data_pipeline.engine.work import Done, Failed, Job, died, remove_remains, run_source
from data_pipeline.pixels.decode import prepare_process

_TASKS_OF_A_WORKER = 256  # then a new process takes its place: libraries that leak do not add up

_job: Job | None = None  # a worker's own


def run_local(job: Job, names: Sequence[str], workers: int, progress: Progress) -> Generator[Done | Failed]:
    """Take every source through the chain in processes; outcomes come as they end.

    A source that was in a worker's hands when one died is tried again alone: if its worker dies again, it has failed.
    """
    progress.begin()
    waiting, suspects, broken = deque[str](), deque[str](), False
    everybody = set(names)
    remove_remains(job, everybody)
    for name in names:
        if job.is_done(name):  # no process is needed to say so
            outcome = run_source(job, name)
            progress.add(outcome)
            yield outcome
        else:
            waiting.append(name)
    while waiting or suspects:
        if suspects:
            todo, count = deque([suspects.popleft()]), 1
            alone = True
        else:
            todo, count, alone = waiting, workers, False
        with closing(_until_broken(job, todo, count)) as outcomes:
            for ended in outcomes:
                if isinstance(ended, str):  # its worker died
                    broken = True
                    if not alone:
                        suspects.append(ended)
                        continue
                    ended = died(job, ended)
                progress.add(ended)
                yield ended
    if broken:
        remove_remains(job, everybody)


def _until_broken(job: Job, todo: deque[str], workers: int) -> Generator[Done | Failed | str]:
    """Outcomes until nothing is left or a worker dies; then the names of those that were being worked on."""
    running: dict[Future[Done | Failed], str] = {}
    context = multiprocessing.get_context("spawn")
    slots = TemporaryDirectory(prefix="contextanyone-")
    given = (job, Path(slots.name), workers)
    with (
        slots,
        ProcessPoolExecutor(
            workers, context, initializer=_begin, initargs=given, max_tasks_per_child=_TASKS_OF_A_WORKER
        ) as pool,
    ):
        try:
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
        finally:
            for future in running:  # where a run ends early
                future.cancel()


def _begin(job: Job, slots: Path, workers: int) -> None:
    global _job  # noqa: PLW0603  # the worker's own; every task would carry it otherwise
    prepare_process()
    if any(stage.gpu for stage in job.stages):
        take_slot(slots, workers)
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
