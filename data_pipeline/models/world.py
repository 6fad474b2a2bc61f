"""The character world's models: truth with noise. They measure the pipeline, not themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.licences import ModelCard
from data_pipeline.models.picture_files import read_picture
from data_pipeline.models.protocols import Candidate, Seen, Verdict
from data_pipeline.rows import Row
from data_pipeline.world_sources import name_of, read_truth
from training.world import Character

_LEAST_PIXELS = 8  # of a mask: fewer are no person
_OUTFIT = ("shirt_color", "trousers_color")
_HAIR = ("hair_color", "hair_style")


@lru_cache(maxsize=2)
def _arrays(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / "truth.npz") as file:
        return {name: file[name] for name in file.files}


@dataclass(frozen=True)
class WorldModels:
    """Answers out of `truth.json` and `truth.npz` beside a source's video.

    Attributes:
        root: the output folder.
        box_noise: each side of a box moves by up to this share of its length.
        wrong_ids: share of frames in which a track is confused with another.
        eroded: pixels that masks lose at their edge.
        wrong_answers: share of the judge's single answers that are false; invalid: share of replies that are no JSON.
    """

    root: Path
    box_noise: float = 0.1
    wrong_ids: float = 0.05
    eroded: int = 1
    wrong_answers: float = 0.05
    invalid: float = 0.02
    name: str = "world"
    version: int = 1
    layout: str = "body14"
    gpu: bool = False

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The renderer's truth with noise, in the place of every model."""
        return (ModelCard("world", str(self.version), "people, masks, joints, captions, edits, verdicts"),)

    def check(self) -> None:
        """Nothing can be missing."""

    def _folder(self, row: Row) -> Path:
        return (self.root / row.video).parent

    def _rng(self, row: Row, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([int(row.sha256[:12], 16), row.start, row.stop, *purpose])

    def people(self, row: Row) -> list[list[Seen]]:
        """As `Models.people`: the truth's boxes, moved; some tracks wrong."""
        rng, folder = self._rng(row, 1), self._folder(row)
        names, masks = read_truth(folder)["people"], _arrays(folder)["masks"]
        frames = []
        for number in range(row.start, row.stop):
            seen = []
            for index, who in enumerate(names):
                box = self._box(masks[index, number], rng)
                if box is not None:
                    wrong = rng.random() < self.wrong_ids
                    seen.append(Seen(box, f"stranger-{int(rng.integers(4))}" if wrong else who))
            frames.append(seen)
        return frames

    def _box(self, mask: NDArray[np.uint8], rng: np.random.Generator) -> tuple[float, float, float, float] | None:
        ys, xs = np.nonzero(mask > 127)
        if len(xs) < _LEAST_PIXELS:
            return None
        height, width = mask.shape
        x0, x1, y0, y1 = xs.min() / width, (xs.max() + 1) / width, ys.min() / height, (ys.max() + 1) / height
        moves = rng.uniform(-self.box_noise, self.box_noise, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        moved = np.clip(np.array([x0, y0, x1, y1]) + moves, 0, 1)
        return float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3])

    def _index(self, row: Row, track: str) -> int:
        names = read_truth(self._folder(row))["people"]
        return names.index(track) if track in names else 0

    def masks(self, row: Row, track: str) -> NDArray[np.uint8]:
        """As `Models.masks`: the truth, eroded."""
        true = _arrays(self._folder(row))["masks"][self._index(row, track), row.start : row.stop]
        kernel = np.ones((2 * self.eroded + 1, 2 * self.eroded + 1), np.uint8)
        hard = np.where(true > 127, 255, 0).astype(np.uint8)
        return np.stack([cv2.erode(mask, kernel) for mask in hard]).astype(np.uint8)

    def joints(self, row: Row, track: str) -> NDArray[np.float32]:
        """As `Models.joints`: the truth within a pixel."""
        true = _arrays(self._folder(row))["joints"][self._index(row, track), row.start : row.stop]
        moved = true + self._rng(row, 2).normal(0, 0.5, true.shape)
        return np.concatenate([moved, np.ones_like(moved[..., :1])], axis=-1).astype(np.float32)

    def captions(self, row: Row) -> tuple[str, str]:
        """As `Models.captions`: the grammar's."""
        first, later = read_truth(self._folder(row))["prompts"]
        return str(first), str(later)

    def edits(self, row: Row, count: int) -> list[Candidate]:
        """As `Models.edits`: the source's reference, in slightly different brightness for each candidate."""
        folder = self._folder(row)
        picture, joints = read_picture(folder / "reference.png"), _arrays(folder)["reference_joints"]
        wanted = "the same person in another action, place and light"
        return [
            Candidate(np.clip(picture.astype(np.int16) + 2 * seed, 0, 255).astype(np.uint8), wanted, seed, joints)
            for seed in range(count)
        ]

    def judge(self, row: Row, candidate: int, *, exchanged: bool) -> Verdict | None:
        """As `Models.judge`: the truth about both people, each answer sometimes false, some replies invalid."""
        truth = read_truth(self._folder(row))
        return self._verdict(
            self._rng(row, 3, candidate, int(exchanged)), truth["character"], truth["reference_character"]
        )

    def compare(self, row: Row, other: Row, *, exchanged: bool) -> Verdict | None:
        """As `Models.compare`: the shots of a source show one person."""
        mine = read_truth(self._folder(row))["character"]
        its = read_truth(self._folder(other))["character"]
        return self._verdict(self._rng(row, 4, other.start, int(exchanged)), mine, its)

    def identities(self, rows: Iterable[Row]) -> list[str]:
        """As `Models.identities`: the truth's names."""
        return [name_of(Character(**read_truth(self._folder(row))["character"])) for row in rows]

    def _verdict(self, rng: np.random.Generator, mine: dict[str, str], other: dict[str, str]) -> Verdict | None:
        if rng.random() < self.invalid:
            return None
        true = [mine == other, *(all(mine[x] == other[x] for x in names) for names in (_HAIR, _OUTFIT))]
        answers = [bool(answer) != bool(rng.random() < self.wrong_answers) for answer in true]
        return Verdict(*answers)
