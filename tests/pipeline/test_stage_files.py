"""Files of stages belong to the part that names them: of its video and settings, whatever ran in between."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from contextanyone_core.media.video_io import write_clip
from data_pipeline.engine.work import Done, Failed, Job, Selection, run_source
from data_pipeline.models.protocols import Seen
from data_pipeline.models.stages import Masks, Person, Poses, TargetFrame
from data_pipeline.pixels.shots import Probe
from data_pipeline.rows import read_part
from data_pipeline.sources import FolderSources
from training.data.video import video_frames


@dataclass(frozen=True)
class Bright:
    """The person is what is brighter than a level; `broken` masks cannot be made."""

    root: Path
    level: int = 127
    name: str = "bright"
    version: int = 1
    layout: str = "body14"
    gpu: bool = False
    cards: tuple = ()
    broken: bool = False

    def check(self):
        pass

    def _masks(self, row):
        return np.stack([np.where(x.max(-1) > self.level, 255, 0) for x in video_frames(self.root / row.video)])

    def people(self, row):
        boxes = [np.flatnonzero(mask.any(0)) / mask.shape[1] for mask in self._masks(row)]
        return [[Seen((float(box.min()), 0.0, float(box.max()), 1.0), "p")] for box in boxes]

    def masks(self, row, track):
        if self.broken:
            raise OSError("the card is gone")
        return self._masks(row).astype(np.uint8)

    def joints(self, row, track):
        return np.stack([np.full((14, 3), np.flatnonzero(mask.any(0)).min()) for mask in self._masks(row)])


def write_person(path, left):
    """12 frames with a person whose body is dim and whose stripe is bright; it is widest in the last frame."""
    frames = np.zeros((12, 64, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[10:60, left : left + 12 + number // 2] = 100
        frame[20:40, left + 4 : left + 8] = 255
    write_clip(path, frames, {})


def job(root, models, selection=None):
    stages = (Probe(root), Person(root, models), Masks(root, models), Poses(root, models), TargetFrame(root, models))
    return Job(root, FolderSources(root / "in"), stages, selection or Selection(), retries=0)


def told(work):
    """What the files of the source's row say: the first column of the person, by five of them."""
    (row,) = read_part(work.part_path(4, "a.mp4")).rows
    place = {name: work.root / path for name, path in row.paths.items()}
    mask = cv2.imread(str(place["mask"] / "00005.png"), cv2.IMREAD_GRAYSCALE)
    target = cv2.imread(str(place["target"]), cv2.IMREAD_GRAYSCALE)
    return {
        "people": round(json.loads(place["people"].read_text())[5][0]["box"][0] * 64),
        "mask": int(np.flatnonzero((mask > 127).any(0)).min()),
        "pose": int(load_file(place["pose"])["keypoints"][5, 0, 0]),
        "target": int(np.flatnonzero((target > 50).any(0)).min()),
        "area": row.scores["masks.area"],
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "in").mkdir()
    write_person(tmp_path / "in" / "a.mp4", 4)
    return tmp_path


def everywhere(found, column):
    return all(abs(found[name] - column) <= 1 for name in ("people", "mask", "pose", "target"))


def test_another_video_under_the_same_name_gets_files_of_its_own(root):
    models = Bright(root, level=50)
    assert isinstance(run_source(job(root, models), "a.mp4"), Done)
    assert everywhere(told(job(root, models)), 4)
    write_person(root / "in" / "a.mp4", 40)
    assert isinstance(run_source(job(root, models, Selection("probe")), "a.mp4"), Done)
    assert everywhere(told(job(root, models)), 40)


def test_settings_that_go_forth_and_back_have_their_own_files(root):
    dim, bright = Bright(root, level=50, name="dim"), Bright(root, level=200, name="bright")
    found = []
    for models in (dim, bright, dim):
        assert isinstance(run_source(job(root, models), "a.mp4"), Done)
        found.append(told(job(root, models)))
    assert found[0] == found[2]
    assert (found[0]["mask"], found[1]["mask"]) == (4, 8)
    assert found[0]["area"] > 2 * found[1]["area"]


def test_what_is_computed_anew_takes_the_place_of_what_was_there(root):
    """A model's weights were exchanged in their folder: nothing in the settings says so."""
    models = Bright(root, level=50)
    run_source(job(root, models), "a.mp4")
    run_source(job(root, replace(models, level=200), Selection("masks")), "a.mp4")
    found = told(job(root, models))
    assert (found["mask"], found["people"]) == (8, 4)


def test_a_recomputation_that_ends_early_leaves_nothing_that_passes_for_done(root):
    models = Bright(root, level=50)
    run_source(job(root, models), "a.mp4")
    broken = job(root, replace(models, broken=True), Selection("masks"))
    assert isinstance(run_source(broken, "a.mp4"), Failed)
    again = job(root, replace(models, level=200))
    assert not again.is_done("a.mp4")
    assert run_source(again, "a.mp4").computed == 3
    assert told(again)["mask"] == told(again)["pose"] == 8
