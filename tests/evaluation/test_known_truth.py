"""The metrics' rank correlation with the truth: an encoder that sees colours, and one that sees nothing."""

import json

import numpy as np
import pytest

from evaluation import check_metrics
from evaluation.metrics.known_truth import FRAMES, SIZE, correlations, ladder, table
from training.world import ATTRIBUTES, TEST_SEED_START

SEED = TEST_SEED_START


class Colours:
    """The mean colour of each cell of a grid over the picture."""

    def pictures(self, frames):
        found = []
        for frame in frames:
            side = min(frame.shape[:2]) // 8 * 8
            cells = frame[:side, :side].reshape(8, side // 8, 8, side // 8, 3).mean((1, 3)).ravel() - 128
            found.append(cells / np.linalg.norm(cells))
        return np.asarray(found, np.float32)


class Noise:
    """Features that have nothing to do with the picture."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def pictures(self, frames):
        found = self._rng.normal(size=(len(frames), 16))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_a_ladder_changes_one_attribute_at_a_time():
    one = ladder(SEED)
    assert [step.changed for step in one.steps] == list(range(len(ATTRIBUTES) + 1))
    assert one.steps[0].video.shape == (FRAMES, *SIZE, 3)
    for before, after in zip(one.steps, one.steps[1:], strict=False):
        assert (before.video != after.video).any()
    again = ladder(SEED)
    assert np.array_equal(one.steps[5].video, again.steps[5].video)


def test_a_metric_that_sees_colours_follows_the_truth_and_noise_does_not():
    ladders = [ladder(SEED + index) for index in range(6)]
    rows = correlations(ladders, {"colours": Colours(), "noise": Noise(), "CLIP": None})
    assert rows["person on white, colours"]["mean"] > 0.5
    assert rows["person on white, colours"]["low"] > 0
    assert rows["person on white, noise"]["low"] < 0 < rows["person on white, noise"]["high"]
    assert rows["drift_slope, colours"]["mean"] > 0.3
    assert rows["whole frame, CLIP"] == {"not run": True}
    text = table(rows, 6)
    assert "| whole frame, CLIP | not run | |" in text
    assert "noise" in text


@pytest.mark.slow
def test_the_command_names_what_measured_and_shows_how_far_it_is(tmp_path, capsys):
    assert check_metrics.main(["--out", str(tmp_path), "--count", "3"]) == 0
    assert {"clips: 100%", "copy_frame: 100%"} <= {line.split("|")[0] for line in capsys.readouterr().err.split("\r")}
    found = json.loads((tmp_path / "known_truth.json").read_text())
    assert found["rows"]["person on white, DINO"] == {"not run": True}
    assert found["rows"]["motion"]["truth"] == "mean speed of the joints"
    assert "the miniature's CLIP tower" in (tmp_path / "known_truth.md").read_text()


def test_too_few_characters_are_one_line(tmp_path, capsys):
    assert check_metrics.main(["--out", str(tmp_path), "--count", "2"]) == 2
    assert "at least 3" in capsys.readouterr().err
