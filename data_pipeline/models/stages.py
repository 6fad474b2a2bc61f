"""The stages that ask models, from people to captions. Each stores scores; what is enough is decided later."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import save_file

from contextanyone_core.atomic_file import publish, staging, whole_file, write_text
from data_pipeline.licences import ModelCard
from data_pipeline.models.picture_files import encode_picture, read_mask, write_picture
from data_pipeline.models.protocols import Models, Seen
from data_pipeline.rows import Drop, Row
from data_pipeline.stage import Stage
from training.data.video import video_frames

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

    @property
    def expensive(self) -> bool:
        """Models are."""
        return True

    @property
    def gpu(self) -> bool:
        """Whether the chain's models use one."""
        return self.models.gpu

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The chain's models."""
        return self.models.cards

    def check(self) -> None:
        """As `Models.check`."""
        self.models.check()


@dataclass(frozen=True)
class Person(ModelStage):
    """Who is there. Drops `no_person`.

    Scores: `count` people at once (the number that is exceeded in fewer than a fifth of the frames), `area` of the main
    one's box (median, share of the picture), `presence` (share of frames), `steady` (share of the frames in which its
    track is the commonest one). Label `track`.
    """

    name: ClassVar[str] = "person"
    version: ClassVar[int] = 2

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
        boxes = [[{"box": one.box, "track": one.track} for one in seen] for seen in frames]
        path = self.path_for(row, "people.json")
        write_text(self.place(path), json.dumps(boxes) + "\n")
        return row.labelled(self.name, track=track).with_paths(people=path)


def companions_start(row: Row) -> int:
    """The frame of the video that a row's mask and pose begin with."""
    return int(row.scores.get("masks.start", 0))


def _area(one: Seen) -> float:
    x0, y0, x1, y1 = one.box
    return max(0.0, x1 - x0) * max(0.0, y1 - y0)


@dataclass(frozen=True)
class Masks(ModelStage):
    """A folder of grey pictures, one for each frame of the shot, named by its number in the video.

    Scores: `area`, the mask's median share of the picture, and `start`, the first frame that there is a picture of.
    Parts of older runs have no `start`: their masks and poses are of all frames of the video.
    """

    name: ClassVar[str] = "masks"

    def __call__(self, row: Row) -> Row:
        """The row with the path `mask`."""
        path, areas = self.path_for(row, "mask"), []
        with staging(self.place(path).parent) as hidden:
            for number, mask in enumerate(self.models.masks(row, row.labels["person.track"]), row.start):
                encode_picture(hidden / f"{number:05d}.png", mask)
                areas.append(float((mask > 127).mean()))
            publish(hidden, self.place(path))
        return row.scored(self.name, area=float(np.median(areas)), start=row.start).with_paths(mask=path)


@dataclass(frozen=True)
class Poses(ModelStage):
    """The person's joints as a pose file that begins where the mask does.

    Score `seen`: the mean share of joints with a score above a half.
    """

    name: ClassVar[str] = "poses"

    def __call__(self, row: Row) -> Row:
        """The row with the path `pose`."""
        joints = self.models.joints(row, row.labels["person.track"])
        begin = companions_start(row)
        whole = np.zeros((row.stop - begin, *joints.shape[1:]), np.float32)
        whole[row.start - begin :] = joints
        size = {name: str(int(row.scores[f"probe.{name}"])) for name in ("width", "height")}
        metadata = {"layout": self.models.layout, **size, "fps": f"{row.scores['probe.fps']:.12g}"}
        path = self.path_for(row, "pose.safetensors")
        with whole_file(self.place(path)) as beside:
            save_file({"keypoints": whole}, beside, metadata)
        seen = float((joints[..., 2] > 0.5).mean())
        return row.scored(self.name, seen=seen).with_paths(pose=path)


@dataclass(frozen=True)
class TargetFrame(ModelStage):
    """The ground-truth frame: where the person's mask is largest. Score `index`, a frame of the video."""

    name: ClassVar[str] = "target"
    version: ClassVar[int] = 2

    def __call__(self, row: Row) -> Row:
        """The row with the score and the path `target`."""
        folder = self.place(row.paths["mask"])
        areas = [_pixels(folder / f"{number:05d}.png") for number in range(row.start, row.stop)]
        index = row.start + int(np.argmax(areas))
        picture = next(video_frames(self.place(row.video), index))
        path = self.path_for(row, "target.png")
        write_picture(self.place(path), picture)
        return row.scored(self.name, index=index).with_paths(target=path)


def _pixels(path: Path) -> int:
    """How many pixels of a mask are the person's."""
    mask = read_mask(path)
    return 0 if mask is None else int((mask > 127).sum())


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
