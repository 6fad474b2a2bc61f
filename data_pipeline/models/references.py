"""Where the reference of a pair is from: an edit of the ground-truth frame, another shot of the source, or the shot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from data_pipeline.models.picture_files import read_picture, write_picture
from data_pipeline.models.protocols import Verdict
from data_pipeline.models.stages import ModelStage, companions_start
from data_pipeline.pixels.decode import frames_of
from data_pipeline.pixels.scores import hash_distance, perceptual_hash
from data_pipeline.rows import Drop, Row
from data_pipeline.stage import Stage

_SEEN = 0.3  # score of a joint that is compared
_QUESTIONS = 3
_ASKED = 50  # pictures of other shots at most that a row is compared with


@dataclass(frozen=True, eq=False)
class Shot:
    """What pictures are compared with: a row's joints (T, K, 3), and the hash of each of its frames."""

    joints: NDArray[np.float32]
    hashes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Target:
    """A row's ground-truth frame as the reference of other rows: its hash, and the joints (K, 3) in it."""

    row: Row
    hash: str
    joints: NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceStage(ModelStage):
    """A stage that verifies pictures of the row's person, from below and from above.

    Scores: `same` (share of yes in three questions, put twice with the pictures exchanged; an invalid reply is three
    times no), `invalid` replies, `pose` (mean shift of the joints over the person's height), `place` (distance of the
    hash from that of the shot's nearest frame: what is too near is a copy).
    """

    name: ClassVar[str] = "verify"

    def scores(
        self, shot: Shot, found: str, joints: NDArray[np.float32], ask: Callable[[bool], Verdict | None]
    ) -> dict[str, float]:
        """The scores of one picture by its hash and joints (K, 2 or more); `ask` takes whether they are exchanged."""
        replies = [ask(exchanged) for exchanged in (False, True)]
        yes = sum(x.same_person + x.same_hair + x.same_outfit for x in replies if x is not None)
        return {
            "same": yes / (_QUESTIONS * len(replies)),
            "invalid": float(sum(x is None for x in replies)),
            "pose": pose_shift(shot.joints, joints),
            "place": place_distance(shot, found),
        }

    def shot(self, row: Row) -> Shot:
        """The row's own pose and frames, read once for all pictures that are compared with them."""
        frames = islice(frames_of(self.place(row.video), 256, row.start), row.stop - row.start)
        return Shot(self.joints(row), tuple(perceptual_hash(frame) for frame in frames))

    def joints(self, row: Row) -> NDArray[np.float32]:
        """The row's joints (T, K, 3), frame by frame of the row."""
        found = np.asarray(load_file(self.place(row.paths["pose"]))["keypoints"], np.float32)
        begin = companions_start(row)
        return found[row.start - begin : row.stop - begin]


@dataclass(frozen=True)
class EditAndVerify(ReferenceStage):
    """Edits of the ground-truth frame; the best one stays. Drops `no_edit`."""

    version: ClassVar[int] = 2
    candidates: int = 2

    def __call__(self, row: Row) -> Row | Drop:
        """The row with the path `reference`."""
        tried = self.models.edits(row, self.candidates)
        if not tried:
            return Drop("no_edit")
        judged, shot = [], self.shot(row)
        for number, one in enumerate(tried):

            def ask(exchanged: bool, number: int = number) -> Verdict | None:
                return self.models.judge(row, number, exchanged=exchanged)

            judged.append((self.scores(shot, perceptual_hash(one.picture), one.joints, ask), one))
        scores, best = max(judged, key=lambda pair: (pair[0]["same"], pair[0]["place"], -pair[1].seed))
        path = self.path_for(row, "reference.png")
        write_picture(self.place(path), best.picture)
        row = row.scored(self.name, **scores, seed=float(best.seed)).with_paths(reference=path)
        return row.labelled(self.name, instruction=best.instruction)


@dataclass(frozen=True)
class OtherShot(ReferenceStage):
    """The ground-truth frame of another shot of the same source. Drops `no_other_shot`.

    What is farthest from the shot is asked about first, and nothing more once all answers are yes, as nothing behind it
    would be better: a long film has thousands of rows.
    """

    version: ClassVar[int] = 2

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, and what tells this stage from an edit's."""
        return {**super().settings, "reference": "other_shot"}

    def __call__(self, row: Row) -> Drop:
        """A row alone has no other shot."""
        return Drop("no_other_shot")

    def over_source(self, rows: tuple[Row, ...]) -> list[Row | Drop | list[Row]]:
        """Each row with the best picture of the other shots' rows as its path `reference`."""
        shots = [row.scores["shots.start"] for row in rows]
        if len(set(shots)) < 2:
            return [Drop("no_other_shot")] * len(rows)
        targets = list(zip([self._target(row) for row in rows], shots, strict=True))
        pairs = zip(rows, shots, strict=True)
        return [self._best(row, [target for target, at in targets if at != own]) for row, own in pairs]

    def _target(self, row: Row) -> Target:
        index = int(row.scores["target.index"]) - row.start
        return Target(row, perceptual_hash(read_picture(self.place(row.paths["target"]))), self.joints(row)[index])

    def _best(self, row: Row, others: list[Target]) -> Row:
        shot = self.shot(row)
        others.sort(key=lambda other: (place_distance(shot, other.hash), -other.row.start), reverse=True)
        judged: list[tuple[dict[str, float], Row]] = []
        for other in others[:_ASKED]:

            def ask(exchanged: bool, other: Row = other.row) -> Verdict | None:
                return self.models.compare(row, other, exchanged=exchanged)

            judged.append((self.scores(shot, other.hash, other.joints, ask), other.row))
            if judged[-1][0]["same"] == 1:
                break
        scores, best = max(judged, key=lambda pair: (pair[0]["same"], pair[0]["place"], -pair[1].start))
        return row.scored(self.name, **scores).with_paths(reference=best.paths["target"])


@dataclass(frozen=True)
class SelfReference(Stage):
    """The ground-truth frame itself: nothing to verify, and nothing that keeps a model from copying it."""

    name: ClassVar[str] = "verify"

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this stage from the others of its name."""
        return {"reference": "self"}

    def __call__(self, row: Row) -> Row:
        """The row with the path `reference`."""
        return row.with_paths(reference=row.paths["target"])


def place_distance(shot: Shot, found: str) -> float:
    """How far a picture's hash is from that of the shot's nearest frame."""
    return min(hash_distance(found, one) for one in shot.hashes)


def pose_shift(joints: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The smallest mean distance of centred joints from any frame's, over the person's height; 0 where none is seen.

    Args:
        joints: (T, K, 3) x, y and score. other: (K, 2) or (K, 3); joints without a score count.
    """
    there = np.ones(len(other), bool) if other.shape[-1] == 2 else other[:, 2] > _SEEN
    best = []
    for frame in joints:
        both = there & (frame[:, 2] > _SEEN)
        if both.sum() >= 2:
            mine, its = frame[both, :2], other[both, :2]
            height = max(float(np.ptp(mine[:, 1])), 1.0)
            moved = (mine - mine.mean(axis=0)) - (its - its.mean(axis=0))
            best.append(float(np.linalg.norm(moved, axis=-1).mean()) / height)
    return min(best, default=0.0)
