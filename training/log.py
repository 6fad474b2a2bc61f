"""Progress of a run: log.jsonl with one line per step, and a progress bar or progress lines."""

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

_LOG = logging.getLogger(__name__)
_LONGEST_LINE = 1 << 16


class StepLog:
    """DIR/log.jsonl, appended across resumes and flushed at every step; the last line of a step counts.

    After a kill the steps since the last checkpoint are repeated and logged again.
    """

    def __init__(self, path: Path) -> None:
        _remove_cut_line(path)
        self._path, self._file = path, path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one step. Numbers that are not finite become null, as JSON has no NaN.

        Raises:
            OSError: the disk is full or not writable.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        try:
            self._file.write(json.dumps(finite).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of what `write` could not write, which it has raised
            self._file.close()


class ProgressDisplay:
    """A progress bar on a terminal; elsewhere one line every `every` steps."""

    def __init__(self, name: str, start: int, total: int, every: int) -> None:
        size = shutil.get_terminal_size((100, 24))  # tqdm shows nothing on a terminal that reports no size
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit="step",
            smoothing=0.05,
            ncols=size.columns,
            nrows=size.lines,
            disable=not sys.stderr.isatty(),
        )
        self._name, self._start, self._total, self._every = name, start, total, every
        self._began = time.monotonic()

    def advance(self, step: int, record: Mapping[str, Any]) -> None:
        """Display a finished step; step counts from 1 here."""
        shown = f"loss {record['loss']:.4g}, lr {record['lr']:.2e}, {record['samples_per_second']:.3g} samples/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(1)
        elif step % self._every == 0 or step == self._total:
            per_step = (time.monotonic() - self._began) / (step - self._start)
            left = tqdm.format_interval(per_step * (self._total - step))
            _LOG.info("%s: step %d of %d, %s, %s left", self._name, step, self._total, shown, left)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def _remove_cut_line(path: Path) -> None:
    """Remove an incomplete last line, which a kill leaves behind."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE)
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)
