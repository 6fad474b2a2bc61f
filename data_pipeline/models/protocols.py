"""What the model stages ask for. A chain gives an answerer for each; the stages name no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.licences import ModelCard
from data_pipeline.rows import Row

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of the width and height."""


@dataclass(frozen=True)
class Seen:
    """One person in one frame: the box, and which track it was given."""

    box: Box
    track: str


@dataclass(frozen=True)
class Verdict:
    """A vision-language model's answers about two pictures."""

    same_person: bool
    same_hair: bool
    same_outfit: bool


@dataclass(frozen=True)
class Candidate:
    """An edited picture, RGB uint8 (H, W, 3), its instruction, and the person's joints (K, 2) in pixels."""

    picture: NDArray[np.uint8]
    instruction: str
    seed: int
    joints: NDArray[np.float32]


class Models(Protocol):
    """The models of a chain. Every answer is a function of the row alone, so that a killed run ends as any other."""

    @property
    def name(self) -> str:
        """Of the chain, with `version` part of every row's key."""

    @property
    def version(self) -> int:
        """To be raised when the same row gets other answers."""

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """Every model with its revision."""

    @property
    def gpu(self) -> bool:
        """Whether they use a GPU."""

    @property
    def layout(self) -> str:
        """Of the joints: body14 or body18, see `contextanyone_core.pose.layouts`."""

    def check(self) -> None:
        """Raise MissingDependencyError or InputError where a package or file is missing; nothing is loaded."""

    def people(self, row: Row) -> list[list[Seen]]:
        """Detection and tracking: for each frame of the row, the people."""

    def masks(self, row: Row, track: str) -> Iterable[NDArray[np.uint8]]:
        """(H, W) uint8, 255 where the person is, for each frame of the row in turn."""

    def joints(self, row: Row, track: str) -> NDArray[np.float32]:
        """(T, K, 3) x and y in pixels and a score, for each frame of the row."""

    def captions(self, row: Row) -> tuple[str, str]:
        """How the person looks in the first frame; what happens later."""

    def edits(self, row: Row, count: int) -> list[Candidate]:
        """The person of the row's ground-truth frame, in another action, place and light."""

    def judge(self, row: Row, candidate: int, *, exchanged: bool) -> Verdict | None:
        """Whether the candidate shows the row's person; the pictures in the other order. None: no valid answer."""

    def compare(self, row: Row, other: Row, *, exchanged: bool) -> Verdict | None:
        """As `judge`, about the ground-truth frames of two rows of one source."""

    def identities(self, rows: Iterable[Row]) -> list[str]:
        """The cluster of each row's person. Embeddings stay in memory, and only these names are written."""
