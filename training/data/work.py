"""Work on many files: shared out over processes, and within one over threads, that ends soon after a stop is requested.

Threads suffice: hashing, decoding and resizing let go of the interpreter.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL = 0.2  # seconds


class Stopped(Exception):  # noqa: N818  # not an error: it was requested
    """A stop was requested."""


@dataclass(frozen=True)
class Share:
    """This process's part of the work: process `rank` of `world`, which ends once `asked` is true.

    What runs inside `cut` may be ended at any moment by the same request.
    """

    rank: int = 0
    world: int = 1
    asked: Callable[[], bool] = lambda: False
    cut: Callable[[], AbstractContextManager[None]] = nullcontext

    def between(self) -> None:
        """Called between small pieces of work. Raises Stopped where it is to end."""
        if self.asked():
            raise Stopped

    def of(self, things: Sequence[Job]) -> list[Job]:
        """This process's things: one run of neighbours, as long as the others' within one."""
        count = len(things)
        return list(things[count * self.rank // self.world : count * (self.rank + 1) // self.world])


def job_share(asked: Callable[[], bool], cut: Callable[[], AbstractContextManager[None]] = nullcontext) -> Share:
    """The share that a launcher gives this process by RANK and WORLD_SIZE; all of it without them."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), asked, cut)


def thread_count() -> int:
    """Cores for each of the processes on this machine, as a launcher says how many they are; 1 at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_threads(
    work: Callable[[Job], Result], jobs: Iterable[Job], share: Share, threads: int, ahead: int
) -> Iterator[tuple[Job, Result]]:
    """Each job and what `work` makes of it, in the order of the jobs, done by threads ahead of their use.

    Args:
        work: called in threads; it should call `share.between` now and then.
        ahead: how many results may wait to be used.

    Raises:
        Stopped: a stop was requested; jobs that run are waited for.
        Exception: whatever `work` raises.
    """
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                waiting.append((job, pool.submit(work, job)))
                if len(waiting) >= threads + ahead:
                    yield _first(waiting, share)
            while waiting:
                yield _first(waiting, share)
        finally:
            for _, future in waiting:
                future.cancel()


def _first(waiting: deque[tuple[Job, Future[Result]]], share: Share) -> tuple[Job, Result]:
    job, future = waiting[0]
    while True:
        share.between()
        try:
            found = future.result(timeout=_POLL)
        except NotYet:
            if future.done():
                raise
            continue
        waiting.popleft()
        return job, found
