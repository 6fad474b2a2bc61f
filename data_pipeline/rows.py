"""What goes from stage to stage: paths, spans, ids and scores of one part of one video; never pixels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

_DROPPED = '{"reason"'  # how the line of a dropped row begins: keys are sorted


class Row(BaseModel):
    """One span of one video, and everything that was measured of it.

    Attributes:
        source: name of the source. sha256: hash of its file.
        video: path of the file, below the output folder, or absolute.
        start, stop: frames of the video, stop exclusive.
        key: hash of the file, the span and every stage so far with its version and settings; the engine sets it.
        paths: files made of it, below the output folder. labels: words, by `<stage>.<name>`.
        scores: measurements, by `<stage>.<name>`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str
    sha256: str
    video: str
    start: int = 0
    stop: int = 0
    key: str = ""
    paths: dict[str, str] = {}
    labels: dict[str, str] = {}
    scores: dict[str, float] = {}

    @property
    def id(self) -> str:
        """Unique within a run: the source and the span."""
        return f"{self.source}-{self.start:06d}-{self.stop:06d}"

    @property
    def files(self) -> str:
        """The folder of this row's files, below the output folder."""
        return f"files/{self.source}/{self.start:06d}-{self.stop:06d}"

    def scored(self, stage: str, **scores: float) -> Row:
        """This row with a stage's scores, rounded to six decimals."""
        added = {f"{stage}.{name}": round(float(value), 6) for name, value in scores.items()}
        return self.model_copy(update={"scores": self.scores | added})

    def labelled(self, stage: str, **labels: str) -> Row:
        """This row with a stage's words."""
        return self.model_copy(update={"labels": self.labels | {f"{stage}.{name}": x for name, x in labels.items()}})

    def with_paths(self, **paths: str) -> Row:
        """This row with files."""
        return self.model_copy(update={"paths": self.paths | paths})

    def span(self, start: int, stop: int) -> Row:
        """The same video's frames from `start` to `stop`."""
        return self.model_copy(update={"start": start, "stop": stop})


@dataclass(frozen=True)
class Drop:
    """A stage has nothing to go on with: a fixed word, the scores that show it, and in words what exactly is wrong."""

    reason: str
    scores: dict[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Dropped:
    """A row that a stage dropped."""

    row: Row
    stage: str
    drop: Drop


@dataclass(frozen=True)
class Part:
    """What one stage made of one source."""

    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...] = ()

    def text(self) -> str:
        """One JSON object a line: the rows, then what was dropped."""
        lines: list[dict[str, Any]] = [{"row": row.model_dump()} for row in self.rows]
        lines += [
            {
                "row": found.row.model_dump(),
                "stage": found.stage,
                "reason": found.drop.reason,
                "scores": found.drop.scores,
                **({"why": found.drop.why} if found.drop.why else {}),
            }
            for found in self.dropped
        ]
        return "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in lines)


def read_part(path: Path, *, dropped_only: bool = False) -> Part:
    """The part that a file holds; its rows, which may be many, are left out on demand."""
    rows, dropped = [], []
    with path.open(encoding="utf-8") as file:
        for text in file:
            if dropped_only and not text.startswith(_DROPPED):
                continue
            line = json.loads(text)
            row = Row.model_validate(line["row"])
            if "reason" in line:
                dropped.append(Dropped(row, line["stage"], Drop(line["reason"], line["scores"], line.get("why", ""))))
            else:
                rows.append(row)
    return Part(tuple(rows), tuple(dropped))


def count_part(path: Path) -> tuple[int, Counter[str]]:
    """How many rows a part holds, and how many were dropped by reason; rows that stay are not parsed."""
    count, dropped = 0, Counter[str]()
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.startswith(_DROPPED):
                dropped[json.loads(text)["reason"]] += 1
            else:
                count += 1
    return count, dropped


def lines_of(path: Path) -> list[str]:
    """The lines of a text file without their ends, and without empty ones.

    Only a line feed ends one: JSON strings and names of files may hold the other separators of Unicode.
    """
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of anything that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sorted_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of every output: by source, then by span."""
    return sorted(rows, key=lambda row: (row.source, row.start, row.stop))
