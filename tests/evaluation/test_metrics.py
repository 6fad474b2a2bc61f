"""The arithmetic of the metrics against values by hand, and planted truths: frozen clips, copies, ties, differences."""

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.media.video_io import write_clip
from evaluation.metrics.catalogue import Metric, catalogue
from evaluation.metrics.copying import background, pixel_correlation
from evaluation.metrics.evaluate import Results
from evaluation.metrics.feature_cache import FeatureCache
from evaluation.metrics.frames import COUNT, Source, chosen, positions
from evaluation.metrics.matched import add_matched
from evaluation.metrics.motion import flow_lengths, per_second, ratio
from evaluation.metrics.person import MaskFolder, cut_out
from evaluation.metrics.similarity import at_gap, slope, subject_consistency, to_reference
from evaluation.metrics.statistics import compare_all, summarise
from evaluation.metrics.tables import mean_cell, table
from evaluation.significance import bootstrap_p, holm
from evaluation.videos import read_frames

SCORE = [Metric("score", "higher", ""), Metric("fault", "lower", ""), Metric("shown", "", "")]


def unit(*angles: float) -> np.ndarray:
    """Features of length 1 at some angles in degrees."""
    return np.asarray([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles], np.float32)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 33, 81, 1000])
def test_frames_are_the_middles_of_equal_parts(length):
    taken = positions(length)
    assert len(taken) == min(length, COUNT)
    assert len(set(taken.tolist())) == len(taken)
    assert taken[0] + taken[-1] in (length - 1, length - 2, length)  # no end is preferred
    if length >= 2 * COUNT + 1:
        assert taken[0] > 0
        assert any(place % 2 for place in taken)


def test_a_still_is_one_picture_in_memory_with_one_mask(tmp_path):
    """A photograph of 12 megapixels would be 1.2 GB as 33 frames, its masks more."""
    for name, size in (("a", (64, 48)), ("b", (48, 48))):
        Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / f"{name}.png")
        (tmp_path / "references").mkdir(exist_ok=True)
        Image.new("L", size, 255).save(tmp_path / "references" / f"{name}.png")
    still, other = (Source(tmp_path / f"{name}.png", f"references/{name}.png", still=True) for name in "ab")
    assert still.frames.shape == (33, 48, 64, 3)
    assert still.frames.strides[0] == 0
    assert len(chosen(still)) == 1
    assert np.shares_memory(chosen(still), still.frames)
    assert MaskFolder(tmp_path).masks(still).shape == (1, 48, 64)
    with pytest.raises(InputError, match=r"masks \(1, 48, 48\) .*; the clip has \(1, 48, 64\)"):
        MaskFolder(tmp_path).masks(other)


def test_clips_are_read_as_a_player_shows_them(tmp_path):
    write_clip(tmp_path / "a.mp4", np.full((6, 48, 64, 3), 90, np.uint8), {})
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"]
    turned = [*words, "-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4"]
    wide = [*words, "-i", tmp_path / "a.mp4", "-vf", "setsar=2,fps=8", tmp_path / "wide.mp4"]
    for command in (turned, wide):
        subprocess.run(list(map(str, command)), check=True)
    assert read_frames(tmp_path / "a.mp4").shape == (6, 48, 64, 3)
    assert read_frames(tmp_path / "turned.mp4").shape == (6, 64, 48, 3)
    assert read_frames(tmp_path / "wide.mp4").shape == (3, 48, 128, 3)
    assert Source(tmp_path / "wide.mp4", "").rate == 8
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"b\.mp4 cannot be decoded"):
        read_frames(tmp_path / "b.mp4")


def test_similarities_by_hand():
    frames = unit(0, 60, 90)
    assert to_reference(frames, unit(0)) == pytest.approx([1, 0.5, 0], abs=1e-6)
    assert slope(np.asarray([1.0, 0.8, 0.6]), np.asarray([0, 0.5, 1.0])) == pytest.approx(-0.4)
    assert slope(np.asarray([1.0]), np.asarray([0.0])) is None
    assert at_gap(frames, 1) == pytest.approx((np.cos(np.pi / 3) + np.cos(np.pi / 6)) / 2, abs=1e-6)
    assert at_gap(frames, 2) == pytest.approx(0, abs=1e-6)
    assert at_gap(frames, 3) is None


def test_vbenchs_subject_consistency_by_its_own_loop():
    """The published loop: sums over frames 1.. of (cosine to the one before + cosine to the first) / 2, cut at 0."""
    frames = unit(0, 20, 55, 170, 100)
    total = 0.0
    for index in range(1, len(frames)):
        before = max(0.0, float(frames[index - 1] @ frames[index]))
        first = max(0.0, float(frames[0] @ frames[index]))
        total += (before + first) / 2
    assert subject_consistency(frames) == pytest.approx(total / (len(frames) - 1))
    assert subject_consistency(unit(5, 5, 5)) == pytest.approx(1)  # the known fault: a still clip is perfect
    assert subject_consistency(unit(5)) is None


def textured(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def test_flow_measures_a_known_shift_relative_to_diagonal_and_second():
    still = textured()
    frames = np.stack([np.roll(still, 2 * step, axis=1) for step in range(6)])
    diagonal = np.hypot(96, 128)
    assert flow_lengths(frames).mean() * diagonal == pytest.approx(2, rel=0.15)
    larger = np.stack([np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in frames])
    assert flow_lengths(larger).mean() == pytest.approx(flow_lengths(frames).mean(), rel=0.15)
    assert per_second(np.asarray([0.01, 0.03], np.float32), 25) == pytest.approx(0.5)
    assert per_second(flow_lengths(np.stack([still] * 4)), 25) == 0
    assert per_second(flow_lengths(still[None]), 25) == 0
    assert ratio(0.3, 0.2) == pytest.approx(1.5)
    assert ratio(0.3, 0.0) is None


def test_flow_of_pictures_smaller_than_its_patches_is_measured():
    """In a process of its own: OpenCV ends it at 12 x 64."""
    code = """
import numpy as np
from evaluation.metrics.motion import flow_lengths
for height, width in ((1, 1), (2, 2), (8, 8), (12, 64), (64, 12), (8, 400), (640, 4), (15, 320)):
    frames = np.random.default_rng(0).integers(0, 255, (3, height, width, 3), dtype=np.uint8)
    lengths = flow_lengths(frames)
    assert lengths.shape == (2,) and np.isfinite(lengths).all(), (height, width, lengths)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], check=True)
    still = textured(12, 96)
    frames = np.stack([np.roll(still, 2 * step, axis=1) for step in range(6)])
    assert flow_lengths(frames).mean() * np.hypot(12, 96) == pytest.approx(2, rel=0.25)


def test_a_copy_is_found_at_another_size_and_another_picture_is_not():
    picture = textured()
    large = np.kron(picture, np.ones((2, 3, 1), np.uint8))
    assert pixel_correlation(np.stack([textured(seed=1), picture]), large) > 0.97
    assert pixel_correlation(textured(seed=1)[None], picture) < 0.3
    assert pixel_correlation(np.full((1, 64, 64, 3), 90, np.uint8), picture) == 0


def test_the_person_is_cut_out_on_white_and_the_place_keeps_nothing_of_it():
    frame = np.full((40, 60, 3), 10, np.uint8)
    frame[5:25, 30:40] = 200
    mask = np.zeros((40, 60), bool)
    mask[5:25, 30:40] = True
    mask[5, 30] = False
    person = cut_out(frame, mask)
    assert person.shape == (22, 22, 3)
    assert (person == 200).all(-1).sum() == 20 * 10 - 1
    assert (person == 255).all(-1).sum() == 22 * 22 - (20 * 10 - 1)
    moved = np.roll(frame, -20, axis=1), np.roll(mask, -20, axis=1)
    assert np.array_equal(cut_out(*moved), person)
    left = background(frame, mask)
    assert (left[5:25, 30:40] == 128).all()
    assert (left == 10).all(-1).sum() == 40 * 60 - 200
    assert cut_out(frame, np.zeros_like(mask)) is None
    assert background(frame, np.ones_like(mask)) is None


def test_a_place_of_which_less_than_a_tenth_is_left_is_none():
    frame, mask = np.full((40, 60, 3), 10, np.uint8), np.zeros((40, 60), bool)
    mask[:, :54] = True
    assert (background(frame, mask) == 10).all(-1).sum() == 40 * 6
    mask[:, 54] = True
    assert background(frame, mask) is None


def test_features_are_computed_once_and_a_damaged_file_again(tmp_path):
    cache, calls = FeatureCache(tmp_path / "features"), []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(3, dtype=np.float32)

    for _ in range(2):
        assert cache.get(("a", "b"), compute).tolist() == [0, 1, 2]
    assert len(calls) == 1
    cache.get(("a", "c"), compute)
    assert len(calls) == 2
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    assert FeatureCache(tmp_path / "features").get(("a", "b"), compute).tolist() == [0, 1, 2]
    assert len(calls) == 3


def planted(difference: float, seed: int, references: int = 24) -> tuple[dict, dict]:
    """Two systems' scores on three items of each reference; items of a reference resemble one another."""
    rng = np.random.default_rng(seed)
    ours, theirs, reference_of = {}, {}, {}
    for reference in range(references):
        level, lean = rng.normal(), 0.3 * rng.normal()
        for prompt in range(3):
            item = f"{reference}-{prompt}"
            reference_of[item] = f"r{reference}"
            theirs[item] = level + 0.1 * rng.normal()
            ours[item] = level + lean + difference + 0.1 * rng.normal()
    return {"ours": ours, "theirs": theirs}, reference_of


def test_a_planted_difference_is_found_and_a_planted_tie_is_equal():
    found, reference_of = planted(0.4, 0)
    numbers = {"score": found, "fault": found, "shown": found}
    compared = compare_all(SCORE, numbers, ["ours", "theirs"], reference_of)
    assert [(row.metric, row.better) for row in compared] == [("score", "ours"), ("fault", "theirs")]
    assert compared[0].difference == pytest.approx(0.4, abs=0.2)
    assert compared[0].low < compared[0].difference < compared[0].high
    ties = []
    for seed in range(12):
        found, reference_of = planted(0.0, seed)
        ties += [row.better for row in compare_all(SCORE[:1], {"score": found}, ["ours", "theirs"], reference_of)]
    assert ties.count("equal") >= 10
    same = {"score": {"a": found["ours"], "b": found["ours"]}}
    row = compare_all(SCORE[:1], same, ["a", "b"], reference_of)[0]
    assert (row.better, row.difference, row.p) == ("equal", 0, 1)


@pytest.mark.parametrize("references", [10, 20])
def test_noise_of_many_metrics_has_a_winner_in_few_tables(references):
    """18 metrics that go together, none of them different: in 5 % of the tables at most one may be called better."""
    metrics = [Metric(f"m{index}", "higher", "") for index in range(18)]
    reference_of = {str(index): str(index) for index in range(references)}
    rng, tables, wrong = np.random.default_rng(0), 100, 0
    for _ in range(tables):
        shared = rng.normal(size=references)
        numbers = {}
        for metric in metrics:
            drawn = shared + rng.normal(size=references)
            numbers[metric.name] = {
                "a": dict(zip(reference_of, drawn, strict=True)),
                "b": dict.fromkeys(reference_of, 0.0),
            }
        wrong += any(row.better != "equal" for row in compare_all(metrics, numbers, ["a", "b"], reference_of))
    assert wrong <= 0.08 * tables
    planted = {
        metric.name: {"a": {item: 2 + rng.normal() for item in reference_of}, "b": dict.fromkeys(reference_of, 0.0)}
        for metric in metrics
    }
    rows = compare_all(metrics, planted, ["a", "b"], reference_of)
    assert [row.better for row in rows].count("a") >= 0.7 * len(rows)


def test_the_interval_is_over_references_not_items():
    rng = np.random.default_rng(0)
    levels = rng.normal(size=10)
    values = {f"{r}-{i}": float(levels[r]) for r in range(10) for i in range(50)}
    clustered = summarise(values, {item: item.split("-")[0] for item in values})
    alone = summarise(values, {item: item for item in values})
    assert clustered.mean == pytest.approx(levels.mean())
    assert (clustered.items, clustered.references) == (500, 10)
    assert clustered.high - clustered.low > 4 * (alone.high - alone.low)
    expected = 2 * 2.262 * levels.std(ddof=1) / np.sqrt(10)  # Student's t with 9 degrees of freedom
    assert clustered.high - clustered.low == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("references", [5, 10])
def test_intervals_of_few_references_hold_the_truth_as_often_as_they_say(references):
    """Plain percentiles of as few hold it in 84 and 90 % of the cases."""
    rng, names = np.random.default_rng(0), {str(index): str(index) for index in range(references)}
    held = 0
    for _ in range(400):
        found = summarise(dict(zip(names, rng.normal(size=references), strict=True)), names)
        held += found.low <= 0 <= found.high
    assert 0.915 * 400 <= held <= 0.98 * 400


def test_a_single_reference_has_no_interval_and_tables_count_what_is_not_all():
    one, many = {"0": 0.25, "1": 0.75}, {str(index): index / 4 for index in range(4)}
    reference_of = {str(index): "same" if index < 2 else str(index) for index in range(4)}
    alone = summarise(one, reference_of)
    assert (alone.mean, alone.low, alone.high, alone.references) == (0.5, None, None, 1)
    assert mean_cell(alone, 4) == "0.5000, n = 2"
    assert mean_cell(summarise(many, reference_of), 4).startswith("0.3750 (")
    assert mean_cell(summarise(many, reference_of), 4).endswith(")")
    row = compare_all(SCORE[:1], {"score": {"a": one, "b": dict.fromkeys(one, 0.0)}}, ["a", "b"], reference_of)[0]
    assert (row.low, row.high, row.better, row.p) == (None, None, "equal", 1)
    results = Results({}, {}, ["a"], ["a"], 4, {"score": {"a": alone}}, [row])
    text = table(results, SCORE, {})
    assert "| score | 0.5000, n = 2 | higher is better |" in text
    assert "| score | a | b | +0.5000, n = 2 | equal |" in text


def test_few_references_decide_nothing_and_holm_makes_many_comparisons_careful():
    few = {"score": {"a": {str(i): 1.0 for i in range(5)}, "b": {str(i): 0.0 for i in range(5)}}}
    row = compare_all(SCORE, few, ["a", "b"], {str(i): str(i) for i in range(5)})[0]
    assert (row.better, row.p) == ("equal", 2**-4)
    seven = {str(i): str(i) for i in range(7)}
    scores = {"a": dict.fromkeys(seven, 1.0), "b": dict.fromkeys(seven, 0.0)}
    assert compare_all(SCORE[:1], {"score": scores}, ["a", "b"], seven)[0].better == "a"
    many = [Metric(f"m{index}", "higher", "") for index in range(20)]
    rows = compare_all(many, {metric.name: scores for metric in many}, ["a", "b"], seven)
    assert {row.better for row in rows} == {"equal"}  # 2 ** -6 is above 0.05 / 20


def test_p_of_a_bootstrap_is_never_below_what_its_draws_can_tell():
    assert bootstrap_p(np.ones(100)) == 0.01
    assert bootstrap_p(np.asarray([-1.0] * 3 + [1.0] * 97)) == pytest.approx(0.06)
    assert bootstrap_p(np.zeros(100)) == 1


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.02]) == [True, True, True]  # 0.05 / 3, / 2 and / 1, from the smallest on
    assert holm([0.03, 0.04, 0.01]) == [False, False, True]  # what comes after the first that stays does not fall
    assert holm([0.02, 0.03, 0.04]) == [False, False, False]


def test_a_difference_inside_of_its_interval_is_equal_whatever_p_says():
    """A t test does not know that one reference of twelve may lose much."""
    lead = dict(enumerate([0.03, 0.66, 0.8, 0.74, 0.65, 0.27, 0.88, 0.8, 0.88, 0.28, -1.26, 0.31]))
    values = {"a": {str(i): value for i, value in lead.items()}, "b": {str(i): 0.0 for i in lead}}
    (row,) = compare_all(SCORE[:1], {"score": values}, ["a", "b"], {str(i): str(i) for i in lead})
    assert row.p < 0.05
    assert row.low < 0 < row.high
    assert row.better == "equal"


def test_comparisons_take_only_items_of_both_systems():
    reference_of = {str(index): str(index) for index in range(10)}
    a = {str(index): 1.0 for index in range(10)}
    b = {str(index): 0.5 for index in range(4, 10)} | {"0": 1.0}
    row = compare_all(SCORE[:1], {"score": {"a": a, "b": b}}, ["a", "b"], reference_of)[0]
    assert (row.items, row.difference) == (7, pytest.approx(3 / 7))
    assert compare_all(SCORE[:1], {"score": {"a": {"0": 1.0}, "b": {"1": 1.0}}}, ["a", "b"], reference_of) == []


def test_a_frozen_clip_tops_identity_and_not_identity_at_matched_motion():
    items = [str(index) for index in range(8)]
    numbers = {
        "motion": {
            "base": dict.fromkeys(items, 0.2),
            "moves": dict.fromkeys(items, 0.18),
            "still": dict.fromkeys(items, 0.0),
        },
        "dino_i": {
            "base": dict.fromkeys(items, 0.6),
            "moves": dict.fromkeys(items, 0.7),
            "still": dict.fromkeys(items, 1.0),
        },
    }
    numbers["motion"]["moves"]["7"] = 0.09  # one clip below half of the base's motion
    numbers["motion"]["base"]["6"] = 0.007  # a base that hardly moves measures nothing: a frozen clip's codec noise
    numbers["motion"]["still"]["6"] = 0.005  # would match it
    add_matched(numbers, "base", ["dino_i", "clip_i"])
    means = {name: np.mean(list(values.values())) for name, values in numbers["dino_i_matched"].items()}
    assert means["still"] == 0
    assert means["moves"] == pytest.approx(0.7 * 6 / 7)
    assert means["moves"] > means["base"] * 6 / 7 > means["still"]
    assert "6" not in numbers["dino_i_matched"]["moves"]
    assert numbers["motion_matched"]["moves"]["7"] == 0
    assert numbers["motion_ratio"]["moves"]["0"] == pytest.approx(0.9)
    assert "clip_i_matched" not in numbers


def test_every_metric_has_one_name():
    names = [metric.name for metric in catalogue("dlib", judge=True)]
    assert len(names) == len(set(names))
