"""What a worker is doing, written where it outlives the worker, and a limit on the time for one row."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_DIED = "the process died: killed, out of memory, or a fault in a library"
_STAGE = "stage "
_TIMEOUT = "Timeout ("  # how faulthandler's traceback begins
_ARMED_FOR = 1.0  # seconds for which a limit is not set again: that starts a thread


class Watch:
    """Notes which stage a source is in, and ends this process when a row takes longer than the limit.

    faulthandler's thread does both the waiting and the traceback: it needs no lock of the interpreter, so that a
    library that never returns is ended as well.
    """

    def __init__(self, file: BinaryIO, seconds: float | None) -> None:
        """Of a file to write to, and a limit in seconds; None is no limit."""
        self._file, self._seconds = file, seconds
        self._armed = -_ARMED_FOR

    def stage(self, name: str, rows: int = 1) -> None:
        """A stage begins, that takes so many rows at once."""
        self._file.write(f"{_STAGE}{name}\n".encode())
        self._arm(rows)

    def row(self) -> None:
        """A row begins."""
        if time.monotonic() - self._armed >= _ARMED_FOR:
            self._arm(1)

    def _arm(self, rows: int) -> None:
        if self._seconds is not None:
            self._armed = time.monotonic()
            later = self._seconds * max(rows, 1) + _ARMED_FOR
            faulthandler.dump_traceback_later(later, exit=True, file=self._file.fileno())


@contextmanager
def watched(path: Path, seconds: float | None) -> Iterator[Watch]:
    """Watch a source; the file is there as long as it is being worked on, and longer where the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        try:
            yield Watch(file, seconds)
        finally:  # not where the process dies
            if seconds is not None:
                faulthandler.cancel_dump_traceback_later()
            path.unlink(missing_ok=True)


def last_words(path: Path) -> tuple[str, str, str]:
    """The stage in which a worker died, why, and the traceback where there is one; the file is removed."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    path.unlink(missing_ok=True)
    notes, timeout, trace = text.partition(_TIMEOUT)
    stages = [line.removeprefix(_STAGE) for line in notes.splitlines() if line.startswith(_STAGE)]
    stage = stages[-1] if stages else "worker"
    if not timeout:
        return stage, _DIED, ""
    return stage, "a row took longer than engine.row_seconds; the process was ended", timeout + trace
