"""The stages that ask models, from people to verification. Each stores scores; what is enough is decided later."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import whole_file, write_text
from data_pipeline.models.protocols import Models, Seen
from data_pipeline.pixels.decode import frames_of
from data_pipeline.pixels.scores import hash_distance, perceptual_hash
from data_pipeline.rows import Drop, Row
from data_pipeline.stage import Stage

_OFTEN = 0.2  # of a shot's frames: who is seen less often is a false detection


@dataclass(frozen=True)
class ModelStage(Stage):
    """A stage with the models of its chain."""

    models: Models

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, the chain's name and version in the place of the models."""
        own = {name: value for name, value in super().settings.items() if name != "models"}
        return {**own, "models": [self.models.name, self.models.version]}


@dataclass(frozen=True)
class Person(ModelStage):
    """Who is there. Drops `no_person`.

    Scores: `count` people at once (the number that is exceeded in fewer than a fifth of the frames), `area` of the main
    one's box (median, share of the picture), `presence` (share of frames), `steady` (share of the frames in which its
    track is the commonest one). Label `track`.
    """

    name: ClassVar[str] = "person"

    def __call__(self, row: Row) -> Row | Drop:
        """The row with its main person."""
        frames = self.models.people(row)
        mains = [max(seen, key=_area) for seen in frames if seen]
        if not mains:
            return Drop("no_person", {"person.presence": 0.0})
        track, times = min(Counter(one.track for one in mains).items(), key=lambda item: (-item[1], item[0]))
        counts = sorted((len(seen) for seen in frames), reverse=True)
        row = row.scored(
            self.name,
            count=counts[int(_OFTEN * len(counts))],
            area=float(np.median([_area(one) for one in mains])),
            presence=len(mains) / len(frames),
            steady=times / len(mains),
        )
        boxes = [[list(one.box) for one in seen] for seen in frames]
        write_text(self.folder(row) / "people.json", json.dumps(boxes) + "\n")
        return row.labelled(self.name, track=track).with_paths(people=f"{row.files}/people.json")


def _area(one: Seen) -> float:
    x0, y0, x1, y1 = one.box
    return max(0.0, x1 - x0) * max(0.0, y1 - y0)


@dataclass(frozen=True)
class Masks(ModelStage):
    """A folder of grey pictures, one for each frame of the video; `area` is the mask's median share of the picture."""

    name: ClassVar[str] = "masks"

    def __call__(self, row: Row) -> Row:
        """The row with the path `mask`."""
        masks = self.models.masks(row, row.labels["person.track"])
        path = self.folder(row) / "mask"
        if not path.is_dir():
            total = int(row.scores["probe.frames"])
            with whole_file(path) as beside:
                beside.mkdir()
                for number in range(total):
                    inside = row.start <= number < row.stop
                    _write_png(beside / f"{number:05d}.png", masks[number - row.start] if inside else masks[0] * 0)
        return row.scored(self.name, area=float(np.median((masks > 127).mean((1, 2))))).with_paths(
            mask=f"{row.files}/mask"
        )


@dataclass(frozen=True)
class TargetFrame(ModelStage):
    """The ground-truth frame: where the person is largest. Score `index`, a frame of the video."""

    name: ClassVar[str] = "target"

    def __call__(self, row: Row) -> Row:
        """The row with the score and the path `target`."""
        masks = self.models.masks(row, row.labels["person.track"])
        index = row.start + int(np.argmax((masks > 127).sum((1, 2))))
        picture = next(frame for at, frame in enumerate(frames_of(self.place(row.video), 1 << 14)) if at == index)
        with whole_file(self.folder(row) / "target.png") as beside:
            _write_png(beside, picture[..., ::-1])
        return row.scored(self.name, index=index).with_paths(target=f"{row.files}/target.png")


@dataclass(frozen=True)
class Captions(ModelStage):
    """Captions in two stages, as the labels `captions.first` and `captions.later`. Drops `no_caption`."""

    name: ClassVar[str] = "captions"

    def __call__(self, row: Row) -> Row | Drop:
        """The row with its labels."""
        first, later = self.models.captions(row)
        return (
            row.labelled(self.name, first=first, later=later) if first.strip() or later.strip() else Drop("no_caption")
        )


@dataclass(frozen=True)
class EditAndVerify(ModelStage):
    """Edits of the ground-truth frame, each verified from below and above; the best one stays.

    Scores: `same` (share of yes in three questions, put twice with the pictures exchanged; an invalid reply is three
    times no), `invalid` replies, `pose` (mean shift of the joints over the person's height), `place` (distance of the
    hash from the ground-truth frame's nearest frame: what is too near is a copy).
    """

    name: ClassVar[str] = "verify"
    candidates: int = 2

    def __call__(self, row: Row) -> Row | Drop:
        """The row with the path `reference`. Drops `no_edit`."""
        tried = self.models.edits(row, self.candidates)
        if not tried:
            return Drop("no_edit")
        joints = self.models.joints(row, row.labels["person.track"])
        hashes = [perceptual_hash(frame) for frame in self._frames(row)]
        judged = []
        for number, candidate in enumerate(tried):
            told = [self.models.judge(row, number, exchanged=exchanged) for exchanged in (False, True)]
            yes = sum(x.same_person + x.same_hair + x.same_outfit for x in told if x is not None)
            found = perceptual_hash(candidate.picture)
            scores = {
                "same": yes / 6,
                "invalid": float(sum(x is None for x in told)),
                "pose": _pose_shift(joints, candidate.joints),
                "place": min(hash_distance(found, one) for one in hashes),
            }
            judged.append((scores, candidate))
        scores, best = max(judged, key=lambda pair: (pair[0]["same"], pair[0]["place"], -pair[1].seed))
        with whole_file(self.folder(row) / "reference.png") as beside:
            _write_png(beside, best.picture[..., ::-1])
        row = row.scored(self.name, **scores, seed=float(best.seed)).with_paths(reference=f"{row.files}/reference.png")
        return row.labelled(self.name, instruction=best.instruction)

    def _frames(self, row: Row) -> list[NDArray[np.uint8]]:
        frames = enumerate(frames_of(self.place(row.video), 256))
        return [frame for number, frame in frames if row.start <= number < row.stop]


def _pose_shift(joints: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The smallest mean distance of centred joints from any frame's, over the person's height."""
    centred, aim = joints - joints.mean(axis=1, keepdims=True), other - other.mean(axis=0)
    height = np.maximum(np.ptp(joints[..., 1], axis=1), 1.0)
    return float((np.linalg.norm(centred - aim, axis=-1).mean(axis=1) / height).min())


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), np.ascontiguousarray(picture)):
        raise OSError(f"{path} could not be written.")
