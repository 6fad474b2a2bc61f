"""The shipped model's knobs and trials: unseen values, damaged references, the cache, the plots."""

import json
from pathlib import Path

import numpy as np
import pytest

from contextanyone_core.generation.pipeline import GenerationSettings
from evaluation import knobs, robust
from evaluation.shipped.cells import summarise_shares
from evaluation.shipped.knobs import MEASURES, SCALES, cells, grid_plot, line_plot, write_knobs
from evaluation.shipped.pictures import box, bust, covered, harsh
from evaluation.shipped.robustness import BASE, _judge, _unseen_case, drawn_with, plan_of, trials
from evaluation.shipped.unseen import UNSEEN_COLORS, with_shirt, with_topknot
from training.world import KEYPOINTS, TEST_SEED_START, render_clip, sample
from training.world.attributes import COLORS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "evaluation" / "results" / "knobs"
SEED = TEST_SEED_START
SMALL = GenerationSettings(num_frames=5, height=96, width=96)


def test_a_plan_is_the_worlds_own_sample():
    for seed in range(SEED, SEED + 3):
        drawn, own = drawn_with(plan_of(seed), SMALL, render_clip), sample(seed, 5, (96, 96))
        assert np.array_equal(drawn.video, own.video)
        assert np.array_equal(drawn.reference, own.reference)
        assert (drawn.character, drawn.scene, drawn.reference_scene) == (own.character, own.scene, own.reference_scene)


@pytest.mark.parametrize("color", ["green", "purple", "black"])
def test_a_shirt_of_a_known_colour_is_the_renderers_own(color):
    from dataclasses import replace

    for seed in range(SEED, SEED + 4):
        plan, times = plan_of(seed), np.arange(2.0)
        made = with_shirt(plan.character, COLORS[color], plan.shot, times, (96, 96)).video.astype(int)
        own = render_clip(replace(plan.character, shirt_color=color), plan.shot, times, (96, 96)).video
        assert np.abs(made - own).max() <= 3  # every rendering is rounded


def test_unseen_colours_are_far_from_every_colour_of_training():
    import cv2

    def lab(color: tuple[int, int, int]) -> np.ndarray:
        return cv2.cvtColor(np.asarray([[color]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0, 0]

    for color in UNSEEN_COLORS.values():
        assert min(float(np.linalg.norm(lab(color) - lab(known))) for known in COLORS.values()) > 25


def test_a_topknot_is_drawn_above_the_head_and_nowhere_else():
    from dataclasses import replace

    plan, times = plan_of(SEED), np.arange(2.0)
    short = render_clip(replace(plan.character, hair_style="short", accessory="none"), plan.shot, times, (128, 128))
    knot = with_topknot(replace(plan.character, accessory="none"), plan.shot, times, (128, 128))
    changed = (knot.video != short.video).any(-1)
    assert changed[0].sum() > 60
    rows = np.flatnonzero(changed[0].any(1))
    head = short.keypoints[0, KEYPOINTS.index("head"), 1]
    assert rows[-1] < head
    assert (knot.masks >= short.masks).all()
    assert np.array_equal(knot.keypoints, short.keypoints)


@pytest.mark.parametrize("kind", ["shirt", "hair"])
def test_unseen_values_are_told_from_all_others_on_renderings(kind):
    found = []
    for seed in range(SEED, SEED + 10):
        case = _unseen_case(seed, SMALL, kind)
        size = np.asarray([96, 96])
        found.append(_judge(case, case.drawn.video, (2 * case.drawn.keypoints / size - 1), kind)[f"{kind}_nearest"])
    assert np.mean(found) >= 0.9


def test_a_share_of_few_clips_has_an_interval_even_where_all_are_alike():
    every = summarise_shares([{"shirt_nearest": 1.0}] * 12, "shirt_nearest")
    assert every is not None
    assert (every["mean"], every["high"]) == (100, pytest.approx(100))
    assert every["low"] == pytest.approx(100 * 12 / (12 + 1.96**2), abs=0.01)
    half = summarise_shares([{"a": 1.0}, {"a": 0.0}, {"a": None}, {}], "a")
    assert half is not None
    assert half["n"] == 2
    assert half["low"] == pytest.approx(100 - half["high"])
    assert summarise_shares([{}], "a") is None


def test_damaged_pictures_are_damaged_as_stated():
    drawn = sample(SEED, 1, (128, 128))
    picture, mask = drawn.reference, drawn.reference_mask
    top, bottom, left, right = box(mask)
    cut = bust(picture, mask)
    assert cut.shape[0] < 0.55 * (bottom - top) + 20
    assert cut.shape[1] >= right - left
    hidden = covered(picture, mask, np.random.default_rng(0))
    share = (hidden != picture).any(-1).sum() / ((bottom - top) * (right - left))
    assert 0.25 < share <= 0.31
    lit = harsh(picture, mask, np.random.default_rng(0)).astype(float).mean((0, 2)) / picture.astype(float).mean((0, 2))
    assert min(lit[left], lit[right - 1]) < 0.4  # across the person, not across the picture
    assert max(lit[left], lit[right - 1]) > 1.1


def test_every_value_of_a_knob_is_a_cell_and_the_plots_are_small():
    base = GenerationSettings()
    assert [cell.generation.gap for _, cell in cells("gap", base)] == [1, 2, 5, 10, 20, 30, 60]
    assert [cell.generation.emphasis for _, cell in cells("emphasis", base)][::2] == [0, 0.5, 1, 2]
    grid = cells("guidance", base)
    assert len(grid) == len(SCALES) ** 2
    rng = np.random.default_rng(0)

    def row(value: object) -> dict[str, object]:
        means = {name: float(100 * rng.random()) for name in MEASURES}
        return {"value": value, **{name: {"mean": m, "low": m - 1, "high": m + 2} for name, m in means.items()}}

    for plot in (
        line_plot("gap", [row(value) for value, _ in cells("gap", base)]),
        line_plot("emphasis", [row(value) for value, _ in cells("emphasis", base)]),
        grid_plot([row(value) for value, _ in grid]),
    ):
        assert plot.startswith(b"\x89PNG")
        assert len(plot) < 150_000


def test_each_knob_has_files_of_its_own_as_the_documents_name_them(tmp_path):
    """One knob measured after another, in one folder: the second leaves what the first wrote."""
    kept = json.loads((RESULTS / "guidance.json").read_text())
    numbers = {name: {"mean": 1.0, "low": 0.5, "high": 2.0, "n": 2} for name in MEASURES}
    gaps = [{"value": value, **numbers} for value, _ in cells("gap", GenerationSettings())]
    write_knobs({"guidance": kept["rows"]}, kept["record"], tmp_path)
    assert json.loads((tmp_path / "guidance.json").read_text()) == kept
    write_knobs({"gap": gaps}, kept["record"], tmp_path)
    names = {f"{knob}.{ending}" for knob in ("gap", "guidance") for ending in ("json", "md", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names
    text = (tmp_path / "guidance.md").read_text()
    both = next(row["attributes"] for row in kept["rows"] if row["value"] == [3.0, 3.0])
    assert f"| 3, 3 | {both['mean']:.1f} ({both['low']:.1f} to {both['high']:.1f}) |" in text
    said = (RESULTS.parents[2] / "docs" / "EVALUATION.md").read_text()
    assert f"keeps {both['mean']:.1f} ({both['low']:.1f} to {both['high']:.1f})" in said


def words(tmp_path: Path, *more: str) -> list[str]:
    settings = ["size=32", "num_frames=5", "steps=1", "batch_size=2", "dtype=float32", "vae_dtype=float32", "threads=1"]
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    return [*folders, "--count", "2", "--set", *settings, "variants.poses=0", *more]


@pytest.mark.slow
def test_the_knobs_command_computes_nothing_twice(tmp_path):
    assert knobs.main(words(tmp_path, "--only", "emphasis")) == 0
    found = json.loads((tmp_path / "out" / "emphasis.json").read_text())
    assert [row["value"] for row in found["rows"]] == [0, 0.25, 0.5, 0.75, 1, 1.5, 2]
    assert (tmp_path / "out" / "emphasis.png").read_bytes().startswith(b"\x89PNG")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    assert len(files) == 7
    assert knobs.main(words(tmp_path, "--only", "emphasis", "gap")) == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    assert {path: after[path] for path in files} == files
    assert len(after) == 7 + 6  # a gap of 10 is the model's own: already measured


@pytest.mark.slow
def test_the_robustness_command_measures_what_it_is_asked_for(tmp_path):
    chosen = ["shirt_unseen", "bust", "vague_prompt", "frames_33"]
    assert robust.main(words(tmp_path, "--only", *chosen)) == 0
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())["trials"]
    assert found.keys() == {BASE, *chosen}
    assert found["shirt_unseen"]["shirt_nearest"]["n"] == 2
    assert found["vague_prompt"]["prompt"] is None
    assert found["bust"]["hidden"] is not None
    assert "difference" not in found[BASE]


def test_a_trial_that_does_not_exist_is_one_line(tmp_path, capsys):
    assert robust.main(words(tmp_path, "--only", "upside_down")) == 2
    error = capsys.readouterr().err
    assert "upside_down" in error
    assert all(name in error for name in trials(GenerationSettings()))


def test_the_documents_have_the_rows_of_the_committed_robustness():
    rows = (RESULTS.parent / "robust" / "robustness.md").read_text().splitlines()
    wanted = [row for row in rows if row.startswith("| ")]
    text = (ROOT / "docs" / "EVALUATION.md").read_text().splitlines()
    assert len(wanted) == 1 + 14  # a heading and the trials
    assert [row for row in wanted if row not in text] == []
