"""The contract of a stage: `row -> row | Drop | rows`, pure and idempotent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from contextanyone_core.errors import ContextAnyoneError
from data_pipeline.licences import ModelCard
from data_pipeline.rows import Drop, Row, digest


class UnavailableError(ContextAnyoneError):
    """What a stage needs for every source is not there: its models cannot be loaded, or their server be used."""


@dataclass(frozen=True)
class Stage(ABC):
    """One step. Its fields are its settings; the same row gives the same answer, and files are written whole.

    Attributes:
        root: the output folder; no setting.
        name: prefix of its scores. version: to be raised when the same settings give other answers.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    root: Path

    @abstractmethod
    def __call__(self, row: Row) -> Row | Drop | list[Row]:
        """One row, several (a split), or why there is none."""

    @property
    def settings(self) -> dict[str, Any]:
        """What changes its answers."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "root"}

    @property
    def gpu(self) -> bool:
        """Whether its time is a GPU's."""
        return False

    @property
    def expensive(self) -> bool:
        """Whether the gate stands before it."""
        return False

    @property
    def compares(self) -> bool:
        """Whether an answer depends on the source's other rows: it has its own `over_source`."""
        return type(self).over_source is not Stage.over_source

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The models that it uses."""
        return ()

    def check(self) -> None:  # noqa: B027  # most stages need nothing
        """Raise MissingDependencyError or InputError where a package or file is missing, before anything runs."""

    def over_source(self, rows: tuple[Row, ...]) -> list[Row | Drop | list[Row]]:
        """The answers for all rows of a source, in their order; a stage that compares rows has its own."""
        return [self(row) for row in rows]

    def place(self, path: str) -> Path:
        """A path of a row on this disk."""
        return self.root / path

    def path_for(self, row: Row, name: str) -> str:
        """The path of a file or folder that this stage makes of a row; the folder around it is there afterwards.

        That folder is named by the row's key and by the stage's own settings: no part that names a file has it
        exchanged by another video, or by a run with other settings.
        """
        mark = digest(row.key, self.name, self.version, self.settings)
        folder = f"{row.files}/{self.name}-{mark}"
        self.place(folder).mkdir(parents=True, exist_ok=True)
        return f"{folder}/{name}"


def cards_of(stages: tuple[Stage, ...]) -> tuple[ModelCard, ...]:
    """Every model of a chain once."""
    return tuple(dict.fromkeys(card for stage in stages for card in stage.cards))


@lru_cache(maxsize=16)
def fingerprints(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """For each stage a hash of its name, version and settings, and of those of every stage before it."""
    found, upstream = [], ""
    for stage in stages:
        upstream = digest(upstream, stage.name, stage.version, stage.settings)
        found.append(upstream)
    return tuple(found)
