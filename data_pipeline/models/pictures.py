"""A chain's models out of parts that look at pictures: a detector, a segmenter, a pose estimator and so on."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import ContextAnyoneError
from contextanyone_core.pose.estimation import PoseEstimator
from data_pipeline.licences import ModelCard
from data_pipeline.models.picture_files import read_picture, write_picture
from data_pipeline.models.protocols import Box, Candidate, Seen, Verdict
from data_pipeline.models.tracks import Found, cluster, tracked
from data_pipeline.rows import Row
from data_pipeline.stage import UnavailableError
from training.data.video import video_frames

Picture = NDArray[np.uint8]
Vector = NDArray[np.float32]
_CAPTION_FRAMES = 8


class Detector(Protocol):
    """Finds people."""

    def people(self, picture: Picture) -> list[Found]:
        """Every person of an RGB picture (H, W, 3)."""


class Segmenter(Protocol):
    """Finds one person's pixels."""

    def mask(self, picture: Picture, box: Box) -> Picture:
        """(H, W) uint8, 255 where the person of the box is."""


class Embedder(Protocol):
    """Tells people apart; the vectors are compared in memory and never written."""

    limit: float
    """Euclidean distance below which two vectors are of one person."""

    def vector(self, picture: Picture, box: Box) -> Vector | None:
        """(N,) float32, of the person of a box; None where nobody can be recognised."""


class Captioner(Protocol):
    """Captions in two stages."""

    def captions(self, frames: Sequence[Picture]) -> tuple[str, str]:
        """How the person looks in the first frame; what happens in all. Empty where there is no valid answer."""


class Editor(Protocol):
    """Makes references."""

    def edit(self, picture: Picture, instruction: str, seed: int) -> Picture:
        """The person of the picture as the instruction says."""


class Judge(Protocol):
    """Compares two people."""

    def verdict(self, first: Picture, second: Picture) -> Verdict | None:
        """Whether both pictures show one person, hair and outfit; None: no valid answer."""


@dataclass(frozen=True)
class Parts:
    """The loaded parts of a kit. Without an editor a chain makes references of other shots, or of the shot itself."""

    detector: Detector
    segmenter: Segmenter
    poses: PoseEstimator
    embedder: Embedder
    captioner: Captioner
    judge: Judge
    editor: Editor | None = None


class Kit(Protocol):
    """Which parts a chain has; small, hashable, and the same in every process."""

    def __hash__(self) -> int:
        """Equal kits share their loaded parts."""

    @property
    def name(self) -> str:
        """Of the chain."""

    @property
    def mark(self) -> str:
        """Changes with every setting that changes an answer."""

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """Its models."""

    def check(self) -> None:
        """Raise MissingDependencyError or InputError where a package or file is missing; nothing is loaded."""

    @property
    def gpu(self) -> bool:
        """Whether they use a GPU."""

    def load(self) -> Parts:
        """Load them. Raises MissingDependencyError, or InputError where weights are missing."""


@lru_cache(maxsize=1)
def _loaded(kit: Kit) -> Parts:
    """Raises UnavailableError where they cannot be loaded, whatever the reason: a name, a package, the GPU's memory."""
    try:
        return kit.load()
    except Exception as error:
        what = str(error) if isinstance(error, ContextAnyoneError) else f"{type(error).__name__}: {error}"
        raise UnavailableError(f"The models of the chain {kit.name} cannot be loaded: {what}") from error


def _nearest(number: int, among: Sequence[int]) -> int:
    """Of ascending numbers the nearest one, of two the smaller."""
    at = bisect_left(among, number)
    return min(among[max(at - 1, 0) : at + 1], key=lambda other: abs(other - number))


@dataclass(frozen=True)
class PictureModels:
    """`Models` by a kit's parts.

    Attributes:
        root: the output folder.
        every: frames from one detection to the next; the frames between have the same people.
        instructions: of edits; candidate n of a row takes one by the row's key and n.
    """

    root: Path
    kit: Kit
    every: int = 5
    instructions: tuple[str, ...] = ()
    layout: str = "body18"

    @property
    def name(self) -> str:
        """Of the kit, with what changes its answers."""
        return f"{self.kit.name} {self.kit.mark} every {self.every}"

    @property
    def version(self) -> int:
        """Of this file."""
        return 1

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The kit's."""
        return self.kit.cards

    @property
    def gpu(self) -> bool:
        """The kit's."""
        return self.kit.gpu

    def check(self) -> None:
        """As `Models.check`."""
        self.kit.check()

    def _frames(self, row: Row) -> Iterator[Picture]:
        return islice(video_frames(self.root / row.video, row.start), row.stop - row.start)

    def people(self, row: Row) -> list[list[Seen]]:
        """As `Models.people`: detection in every few frames, tracks by overlap, then by appearance."""
        parts = _loaded(self.kit)
        looked: list[list[Found]] = []
        for number, picture in enumerate(self._frames(row)):
            if number % self.every == 0:
                found = parts.detector.people(picture)
                looked.append([replace(one, vector=parts.embedder.vector(picture, one.box)) for one in found])
        tracks = tracked(looked, parts.embedder.limit)
        return [tracks[number // self.every] for number in range(row.stop - row.start)]

    def _boxes(self, row: Row, track: str) -> list[Box]:
        """The box of a track in each frame, from the nearest frame where it is not seen."""
        frames = json.loads((self.root / row.paths["people"]).read_text(encoding="utf-8"))
        boxes = {number: one["box"] for number, people in enumerate(frames) for one in people if one["track"] == track}
        known = list(boxes)  # ascending
        found: list[Box] = []
        for number in range(len(frames)):
            x0, y0, x1, y1 = boxes[_nearest(number, known)]
            found.append((x0, y0, x1, y1))
        return found

    def masks(self, row: Row, track: str) -> Iterator[Picture]:
        """As `Models.masks`: one at a time, for those of a long shot fill the memory."""
        segmenter = _loaded(self.kit).segmenter
        for picture, box in zip(self._frames(row), self._boxes(row, track), strict=True):
            yield segmenter.mask(picture, box)

    def joints(self, row: Row, track: str) -> Vector:
        """As `Models.joints`: of the person whom the estimator finds first; the track does not choose."""
        return np.asarray(list(_loaded(self.kit).poses.estimate(self._frames(row))), np.float32)

    def captions(self, row: Row) -> tuple[str, str]:
        """As `Models.captions`, from eight frames over the shot."""
        wanted = set(np.linspace(0, row.stop - row.start - 1, _CAPTION_FRAMES).round().astype(int).tolist())
        frames = [picture for number, picture in enumerate(self._frames(row)) if number in wanted]
        return _loaded(self.kit).captioner.captions(frames)

    def edits(self, row: Row, count: int) -> list[Candidate]:
        """As `Models.edits`: none where the chain has no editor."""
        parts = _loaded(self.kit)
        if parts.editor is None or not self.instructions:
            return []
        target, made = self._target(row), []
        for seed in range(count):
            words = self.instructions[(int(row.sha256[:8], 16) + row.start + seed) % len(self.instructions)]
            picture = parts.editor.edit(target, words, seed)
            write_picture(self._candidate(row, seed), picture)
            joints = np.asarray(next(iter(parts.poses.estimate([picture]))), np.float32)
            made.append(Candidate(picture, words, seed, joints))
        return made

    def judge(self, row: Row, candidate: int, *, exchanged: bool) -> Verdict | None:
        """As `Models.judge`, about the pictures that `edits` wrote."""
        return self._verdict(self._target(row), read_picture(self._candidate(row, candidate)), exchanged)

    def compare(self, row: Row, other: Row, *, exchanged: bool) -> Verdict | None:
        """As `Models.compare`."""
        return self._verdict(self._target(row), self._target(other), exchanged)

    def _verdict(self, first: Picture, second: Picture, exchanged: bool) -> Verdict | None:
        judge = _loaded(self.kit).judge
        return judge.verdict(second, first) if exchanged else judge.verdict(first, second)

    def identities(self, rows: Iterable[Row]) -> list[str]:
        """As `Models.identities`: single linkage over the ground-truth frames; who is not recognised is alone."""
        parts = _loaded(self.kit)
        vectors: list[Vector | None] = []
        names = []
        for row in rows:
            names.append(row.id)
            target = self._target(row)
            largest = max(parts.detector.people(target), key=lambda one: one.area, default=None)
            vectors.append(None if largest is None else parts.embedder.vector(target, largest.box))
        return cluster(vectors, parts.embedder.limit, names)

    def _target(self, row: Row) -> Picture:
        return read_picture(self.root / row.paths["target"])

    def _candidate(self, row: Row, number: int) -> Path:
        return self.root / row.files / f"candidate{number}-{row.key}.png"
