"""Sources of many shots: what one shot costs does not grow with the length of the video around it."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contextanyone_core.media.video_io import write_clip
from data_pipeline.models import references
from data_pipeline.models.protocols import Candidate, Verdict
from data_pipeline.models.references import EditAndVerify, OtherShot
from data_pipeline.models.stages import Masks, Poses, TargetFrame, companions_start
from data_pipeline.pixels import decode
from data_pipeline.pixels.scores import Blur, Dark
from data_pipeline.rows import Drop, Row
from training.data import video

FRAMES, SHOT = 360, 40


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A folder with a video of nine shots, in each of which a square moves over a ground of its own."""
    folder = tmp_path_factory.mktemp("film")
    frames = np.zeros((FRAMES, 48, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:] = 20 + 20 * (number // SHOT)
        frame[10:30, number % SHOT : number % SHOT + 12] = 250 - 3 * (number % SHOT)
    write_clip(folder / "a.mp4", frames, {})
    return folder


@pytest.fixture
def shown(monkeypatch):
    """The numbers of how many frames were given out so far."""
    count = [0]
    pixels = video._pixels

    def counted(frame):
        count[0] += 1
        return pixels(frame)

    monkeypatch.setattr(video, "_pixels", counted)
    decode.pairs_of.cache_clear()
    return count


def rows():
    whole = Row(source="a.mp4", sha256="0" * 64, video="a.mp4").scored("probe", fps=16, frames=FRAMES)
    shots = [whole.span(start, start + SHOT).scored("shots", start=start) for start in range(0, FRAMES, SHOT)]
    return [shot.model_copy(update={"key": str(shot.start)}) for shot in shots]


def test_a_late_shot_is_found_by_seeking_and_has_the_same_frames(film, shown):
    pairs = decode.pairs_of(film / "a.mp4", 320, 360)
    assert shown[0] <= SHOT
    every = list(decode.frames_of(film / "a.mp4", 256))
    assert np.array_equal(pairs[0][0], every[320])
    assert np.array_equal(pairs[-1][1], every[359])


def test_one_decoding_of_each_shot_serves_all_stages(film, shown):
    blur, dark = Blur(film), Dark(film)
    found = [blur(row) for row in rows()]
    once = shown[0]
    assert once <= FRAMES
    assert all("dark.brightness" in dark(row).scores for row in found)
    assert shown[0] == once


@dataclass(frozen=True)
class Same:
    """Models for whom every picture shows the same person."""

    name: str = "same"
    version: int = 1
    gpu: bool = False
    cards: tuple = ()

    def edits(self, row, count):
        picture = np.full((48, 64, 3), 90, np.uint8)
        return [Candidate(picture, "in a park", seed, np.ones((14, 2), np.float32)) for seed in range(count)]

    def judge(self, row, candidate, *, exchanged):
        return Verdict(True, True, True)

    layout: str = "body14"

    def masks(self, row, track):
        mask = np.zeros((48, 64), np.uint8)
        for number in range(row.start, row.stop):
            mask[:] = 0
            mask[10 : 11 + number % SHOT] = 255
            yield mask

    def joints(self, row, track):
        return np.full((row.stop - row.start, 14, 3), np.arange(row.start, row.stop)[:, None, None], np.float32)

    def compare(self, row, other, *, exchanged):
        return Verdict(True, True, True)


def with_pictures(root):
    """The rows with a pose file and a target picture each."""
    found = []
    for row in rows():
        save_file({"keypoints": np.ones((FRAMES, 14, 3), np.float32)}, root / f"{row.start}.safetensors")
        cv2.imwrite(str(root / f"{row.start}.png"), np.full((48, 64, 3), row.start % 250, np.uint8))
        row = row.with_paths(pose=f"{row.start}.safetensors", target=f"{row.start}.png")
        found.append(row.scored("target", index=row.start))
    return found


def test_masks_and_poses_are_of_the_shot_alone(film):
    """With those of the whole video in each shot a film of ten minutes would take millions of files."""
    row = rows()[-1].labelled("person", track="p").scored("probe", fps=16, frames=FRAMES, width=64, height=48)
    for stage in (Masks, Poses, TargetFrame):
        row = stage(film, Same())(row)
    files = sorted(path.name for path in (film / row.paths["mask"]).iterdir())
    assert files == [f"{number:05d}.png" for number in range(320, 360)]
    assert load_file(film / row.paths["pose"])["keypoints"][:, 0, 0].tolist() == list(range(320, 360))
    assert row.scores["target.index"] == 357  # the last frame whose mask the picture's edge does not cut
    assert companions_start(row) == 320
    assert companions_start(rows()[-1]) == 0  # a row of an older run, with masks of all frames


def test_verifying_decodes_a_shot_once_however_many_pictures_there_are(film, shown):
    root = Path(film)
    last = with_pictures(root)[-1]
    assert EditAndVerify(root, Same(), candidates=3)(last).scores["verify.same"] == 1
    assert shown[0] <= SHOT + 1
    shown[0] = 0
    answers = OtherShot(root, Same()).over_source(tuple(with_pictures(root)))
    assert len(answers) == FRAMES // SHOT
    assert shown[0] <= FRAMES + len(answers)


@dataclass(frozen=True)
class Asked(Same):
    """Says no about some rows, and notes every question."""

    refused: tuple = ()
    asked: list = field(default_factory=list, compare=False)

    def compare(self, row, other, *, exchanged):
        self.asked.append((row.start, other.start))
        yes = other.start not in self.refused
        return Verdict(yes, yes, yes)


def chosen_among_all(stage, films):
    """The reference of each row after all questions, whatever the answers are."""
    paths, targets = [], [stage._target(row) for row in films]
    for row in films:
        shot, judged = stage.shot(row), []
        for other in targets:
            if other.row != row:

                def ask(exchanged, row=row, other=other.row):
                    return stage.models.compare(row, other, exchanged=exchanged)

                judged.append((stage.scores(shot, other.hash, other.joints, ask), other.row))
        best = max(judged, key=lambda pair: (pair[0]["same"], pair[0]["place"], -pair[1].start))
        paths.append(best[1].paths["target"])
    return paths


@pytest.mark.parametrize("refused", [(), (0, 80, 120, 200, 320), range(0, FRAMES, SHOT)])
def test_no_more_is_asked_about_other_shots_once_nothing_can_be_better(film, monkeypatch, refused):
    root, films, rng = Path(film), with_pictures(Path(film)), np.random.default_rng(0)
    for row in films:
        cv2.imwrite(str(root / row.paths["target"]), cv2.resize(rng.integers(0, 255, (3, 4, 3), np.uint8), (64, 48)))
    stage = OtherShot(root, Asked(refused=tuple(refused)))
    wanted, questions = chosen_among_all(stage, films), stage.models.asked
    assert len(questions) == 2 * len(films) * (len(films) - 1)
    questions.clear()
    assert [row.paths["reference"] for row in stage.over_source(tuple(films))] == wanted
    if not refused:
        assert len(questions) == 2 * len(films)
    questions.clear()
    monkeypatch.setattr(references, "_ASKED", 3)
    stage.over_source(tuple(films))
    assert len(questions) <= 2 * 3 * len(films)


def test_rows_of_the_same_shot_are_no_other_shot(film):
    root = Path(film)
    first, second, other = with_pictures(root)[:3]
    second = second.scored("shots", start=0)
    answers = OtherShot(root, Same()).over_source((first, second, other))
    assert [row.paths["reference"] for row in answers] == [other.paths["target"]] * 2 + [first.paths["target"]]
    assert OtherShot(root, Same()).over_source((first, second)) == [Drop("no_other_shot")] * 2
