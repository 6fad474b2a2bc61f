"""A run's log.jsonl as series over steps, across resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contextanyone_core.errors import InputError

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class History:
    """The lines of a run.

    Attributes:
        lines: one for each step, in order; of several lines with one step the last counts.
        redone: steps at which a start did steps anew that an earlier one had logged.
        damaged: lines that are no JSON object with a step.
    """

    lines: list[dict[str, Any]]
    redone: list[int]
    damaged: int

    def series(self, name: str, count: int = 500) -> Points:
        """(step, value) of a number, at most `count` points, each the mean of as many steps."""
        found = [(line["step"], line[name]) for line in self.lines if _is_number(line.get(name))]
        size = max(1, -(-len(found) // count))
        return [_mean(found[start : start + size]) for start in range(0, len(found), size)]

    def names(self) -> list[str]:
        """Every number that any line has, in the order of their first appearance."""
        return list(dict.fromkeys(name for line in self.lines for name, value in line.items() if _is_number(value)))


def read_history(path: Path) -> History:
    """Read a log.jsonl.

    Raises:
        InputError: it is missing, or no line of it is a step.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. It is in the folder of every run.") from None
    steps: dict[int, dict[str, Any]] = {}
    redone, damaged, last = [], 0, -1
    for line in text.splitlines():
        record = _record(line)
        if record is None:
            damaged += 1
            continue
        step = record["step"]
        if step <= last:
            redone.append(step)
        last = step
        steps[step] = record
    if not steps:
        raise InputError(f"{path} has no step yet.")
    return History([steps[step] for step in sorted(steps)], sorted(set(redone)), damaged)


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    fits = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if fits else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return (points[-1][0], sum(value for _, value in points) / len(points))
