"""The account of a run while it goes on: a line of JSON every two seconds, a line of words every half minute."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.engine.reckoning import Cost
from data_pipeline.engine.work import Done, Failed
from data_pipeline.stage import Stage

_TAIL = 1 << 16  # bytes: more than a line has
_EVERY = 2.0  # seconds between lines of progress.jsonl
_WORDS_EVERY = 30.0  # seconds between lines for people
_LOGGER = logging.getLogger(__name__)


@dataclass
class Progress:
    """`progress.jsonl`: sources done and failed, rows computed, rows a second, seconds left, the funnel so far.

    `eta_s` and `gpu_hours_left` follow from the sources that were computed, not read, in this run. `costs` is what the
    stages took in this run and in those before it that wrote into the same file.
    """

    path: Path
    total: int
    stages: Sequence[Stage] = ()
    done: int = 0
    failed: int = 0
    rows: int = 0
    funnel: dict[str, int] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    _computed: int = 0
    _gpu: float = 0.0
    _started: float = 0.0
    _written: float = 0.0
    _logged: float = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self._started = self._logged = time.monotonic()
        self.costs = costs_in(last_line(self.path))

    def add(self, outcome: Done | Failed) -> None:
        """Count a source, and write a line if the last is a while ago."""
        self.done += 1
        self.failed += isinstance(outcome, Failed)
        if isinstance(outcome, Failed) or outcome.computed:
            self._computed += 1
        elif not self._computed:
            self._started = time.monotonic()  # what an earlier run had done is only read
        if isinstance(outcome, Done):
            self.rows += outcome.computed
            for stage, (rows, computed, seconds) in zip(self.stages, outcome.stages, strict=False):
                self.funnel[stage.name] = self.funnel.get(stage.name, 0) + rows
                if seconds:
                    self.costs[stage.name] = self.costs.get(stage.name, Cost()).plus(computed, seconds)
                self._gpu += seconds if stage.gpu else 0.0
        now = time.monotonic()
        if now - self._written >= _EVERY or self.done == self.total:
            self.write()
        if now - self._logged >= _WORDS_EVERY:
            self._logged = now
            _LOGGER.info("%s", progress_words(self._line()))

    def write(self) -> None:
        """Append one line."""
        self._written = time.monotonic()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._line()) + "\n")

    def _line(self) -> dict[str, object]:
        elapsed = max(time.monotonic() - self._started, 1e-6)
        sources = self.total - self.done
        left = sources / self._computed if self._computed else None if sources else 0.0
        return {
            "done": self.done,
            "total": self.total,
            "failed": self.failed,
            "rows": self.rows,
            "rows_per_s": round(self.rows / elapsed, 2),
            "eta_s": None if left is None else round(elapsed * left, 1),
            "gpu_hours_left": None if left is None else round(self._gpu * left / 3600, 3),
            "funnel": self.funnel,
            "costs": {name: [cost.sources, cost.rows, round(cost.seconds, 3)] for name, cost in self.costs.items()},
        }


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a `progress.jsonl`; empty where there is none.

    It may be being written, and a full disk or a power failure leaves a part of a line, which the next one goes on.
    """
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        with suppress(ValueError):
            return dict(json.loads(line))
    return {}


def costs_in(line: Mapping[str, Any]) -> dict[str, Cost]:
    """The costs of stages that a line of `progress.jsonl` has."""
    return {name: Cost(*counted) for name, counted in line.get("costs", {}).items()}


def progress_words(line: Mapping[str, Any]) -> str:
    """A line of `progress.jsonl` in words."""
    funnel = line["funnel"]
    counts = ", ".join(f"{count} {name}" for name, count in funnel.items()) if isinstance(funnel, dict) else ""
    return (
        f"{line['done']} of {line['total']} sources, {line['failed']} failed, {line['rows_per_s']} rows/s, "
        f"{line['eta_s']} s and {line['gpu_hours_left']} GPU-hours left; rows after {counts}"
    )
