"""Pose sequences: other layouts, other rates, gaps, smoothing, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_cases import dances, figure, sequence

from contextanyone_core.errors import InputError
from contextanyone_core.pose.layouts import LAYOUTS, to_whole
from contextanyone_core.pose.resample import (
    MAX_FRAMES,
    clip_of,
    fill_gaps,
    most_frames,
    prepare,
    resample,
    smoothed,
    source_frames,
    within_limit,
)
from contextanyone_core.pose.sequence import BODY_18, SEEN, PoseSequence, sequence_of

COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)


def points(count, frames=1):
    """Points that tell their own number: x is the index, y ten times it."""
    numbers = np.arange(count, dtype=float)
    return np.tile(np.stack([numbers, 10 * numbers, np.ones(count)], axis=1), (frames, 1, 1))


def test_coco_points_keep_their_names_and_the_neck_is_the_middle_of_the_shoulders():
    body = to_whole(points(17), "coco17")[0, :18]
    for index, name in enumerate(BODY_18):
        expected = 5.5 if name == "neck" else COCO.index(name)
        assert body[index].tolist() == [expected, 10 * expected, 1]


@pytest.mark.parametrize(("right", "left", "score"), [(0.9, 0.4, 0.4), (0.9, 0.3, 0), (0.2, 0.9, 0), (0, 0, 0)])
def test_the_necks_score_is_the_smaller_one_if_both_shoulders_are_seen(right, left, score):
    given = points(17)
    given[0, COCO.index("right_shoulder"), 2] = right
    given[0, COCO.index("left_shoulder"), 2] = left
    assert to_whole(given, "coco17")[0, 1, 2] == score


def test_wholebodys_133_points_are_body_feet_face_left_and_right_hand():
    poses = sequence_of(to_whole(points(133, 2), "wholebody133"), (2000, 200), 16)
    assert poses.body[0, 2:4, 0].tolist() == [6, 8]  # right shoulder and elbow
    assert poses.face[1, :68, 0].tolist() == list(range(23, 91))
    assert (poses.face[1, 68:, 2] == 0).all()
    assert poses.hands[1, 0, :, 0].tolist() == list(range(91, 112))
    assert poses.hands[1, 1, :, 0].tolist() == list(range(112, 133))


def test_a_sequence_without_hands_and_face_has_none():
    poses = sequence_of(to_whole(points(18), "body18"), (480, 832), 16)
    assert poses.hands is None
    assert poses.face is None
    assert poses.whole.shape == (1, 130, 3)


def test_layouts_are_never_guessed():
    with pytest.raises(InputError, match="body14, coco17, body18, wholebody133"):
        to_whole(points(18), "openpose")
    for layout, count in LAYOUTS.items():
        with pytest.raises(InputError, match=f"{count} points are needed"):
            to_whole(points(count + 1), layout)
    with pytest.raises(InputError, match="points are needed"):
        to_whole(points(18)[..., :2], "body18")


def test_a_sequence_refuses_what_is_none():
    body = points(18)
    broken = body.copy()
    broken[0, 3, 1] = np.nan
    for wrong in (
        {"body": broken},
        {"body": body[:0]},
        {"body": body[:, :17]},
        {"body": body, "width": 0},
        {"body": body, "fps": np.inf},
        {"body": body, "fps": 0},
        {"body": body, "hands": np.zeros((2, 2, 21, 3))},
        {"body": body, "face": np.zeros((1, 68, 3))},
    ):
        with pytest.raises(InputError):
            PoseSequence(**({"width": 832, "height": 480, "fps": 16} | wrong))


def test_points_without_a_score_are_zero_and_scores_end_at_one():
    body = points(18)
    body[0, 3, 2], body[0, 4, 2], body[0, 5, 2] = 0, -1, 7
    poses = sequence(body)
    assert (poses.body[0, 3:5] == 0).all()
    assert poses.body[0, 5].tolist() == [5, 50, 1]


@given(dances(missing=True), st.integers(1, 60), st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_the_canvas_is_placed_whole_in_the_middle_with_its_aspect(poses, height, width):
    placed = poses.placed((16 * height, 16 * width))
    corners = sequence([figure()])
    corners = replace(corners, body=np.tile((0.0, 0.0, 1.0), (1, 18, 1)))
    low = corners.placed((16 * height, 16 * width)).body[0, 0, :2]
    factor = min(16 * width / poses.width, 16 * height / poses.height)
    np.testing.assert_allclose(low, [8 * width - factor * 416, 8 * height - factor * 240], atol=1e-9)
    assert min(low) == pytest.approx(0, abs=1e-9)
    seen = poses.body[..., 2] > 0
    np.testing.assert_allclose(placed.body[seen][:, :2], poses.body[seen][:, :2] * factor + low, atol=1e-6)


@given(dances(missing=True))
@settings(deadline=None, max_examples=40)
def test_at_its_own_rate_a_sequence_stays_as_it_is(poses):
    assert np.array_equal(resample(poses).whole, poses.whole)
    assert np.array_equal(resample(replace(poses, fps=30.0), 30.0).whole, poses.whole)


@pytest.mark.parametrize(
    ("fps", "frames", "expected"), [(30, 31, 17), (24, 25, 17), (25, 50, 32), (60, 61, 17), (8, 9, 17)]
)
def test_a_steady_motion_is_resampled_exactly(fps, frames, expected):
    """Two pixels for each sixteenth of a second, whatever the source's rate."""
    bodies = [figure(neck=(100 + 32 * index / fps, 140)) for index in range(frames)]
    poses = resample(sequence(bodies, fps=float(fps)))
    assert poses.num_frames == expected
    assert poses.fps == 16
    np.testing.assert_allclose(poses.body[:, 1, 0], 100 + 2 * np.arange(expected), atol=1e-9)


def test_a_point_that_one_neighbour_alone_shows_is_taken_from_the_nearer_frame():
    bodies = np.array([figure(neck=(100 + index, 140)) for index in range(31)])
    bodies[15, 4] = 0
    poses = resample(sequence(bodies, fps=30.0))  # frame 8 lies at 15, frame 7 at 13.1, frame 9 at 16.9
    assert [frame for frame in range(17) if poses.body[frame, 4, 2] == 0] == [8]
    assert (poses.body[:, :4, 2] == 1).all()


def test_too_many_frames_are_refused():
    with pytest.raises(InputError, match="at most 2001"):
        resample(sequence([figure()] * 300, fps=1.0))


@given(st.floats(0.2, 240))
@settings(deadline=None, max_examples=40)
def test_of_poses_that_are_too_long_as_many_as_possible_are_taken(fps):
    most = most_frames(fps)
    long = sequence(np.zeros((most + 1, 18, 3)), fps=fps)
    cut = within_limit(long)
    assert cut.num_frames == most
    assert f"has {most + 1} frames" in cut.remarks[0]
    assert MAX_FRAMES - 16 / fps - 1 <= resample(cut).num_frames <= MAX_FRAMES
    assert within_limit(cut) is cut


@given(st.integers(0, 2**32 - 1), st.floats(4, 120), st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_the_frames_that_a_clip_is_made_of_give_the_same_clip(seed, fps, quarter):
    rng = np.random.default_rng(seed)
    count = 4 * quarter + 1
    bodies = rng.uniform(1, 99, (8 * source_frames(count, fps), 18, 3))
    bodies[..., 2] = rng.random(bodies.shape[:2]) < 0.5
    whole = sequence(bodies, fps=fps)
    some = whole.at(slice(source_frames(count, fps)))
    one, two = (clip_of(prepare(poses, smooth=True), count).body for poses in (whole, some))
    np.testing.assert_allclose(one, two, atol=1e-9)


@pytest.mark.parametrize("gap", [1, 5, 6])
def test_gaps_of_up_to_five_frames_are_filled_on_a_line(gap):
    bodies = np.array([figure(neck=(100 + 3 * index, 140 - index)) for index in range(gap + 2)])
    whole = bodies.copy()
    bodies[1:-1, 4] = (7, 7, SEEN)
    bodies[0, 4, 2] = 0.6
    filled = fill_gaps(sequence(bodies)).body
    if gap <= 5:
        np.testing.assert_allclose(filled[:, 4, :2], whole[:, 4, :2])
        np.testing.assert_allclose(filled[1:-1, 4, 2], 0.6)
    else:
        np.testing.assert_array_equal(filled, bodies)


@given(dances(max_frames=12, missing=True))
@settings(deadline=None, max_examples=40)
def test_filling_changes_no_point_that_is_seen_and_nothing_a_second_time(poses):
    filled = fill_gaps(poses)
    seen = poses.body[..., 2] > SEEN
    assert np.array_equal(filled.body[seen], poses.body[seen])
    assert np.array_equal(fill_gaps(filled).body, filled.body)
    first = seen.argmax(axis=0)
    for point in range(18):
        assert (filled.body[: first[point], point] == poses.body[: first[point], point]).all()


def test_smoothing_keeps_constant_acceleration_and_calms_jitter():
    time = np.arange(20.0)
    steady = sequence([figure(neck=(100 + 3 * t + 0.5 * t * t, 140 - t * t)) for t in time])
    np.testing.assert_allclose(smoothed(steady).body, steady.body, atol=1e-9)
    rng = np.random.default_rng(0)
    shaken = steady.body.copy()
    shaken[..., :2] += rng.normal(0, 2, (*shaken.shape[:2], 2))
    calm = smoothed(sequence(shaken)).body
    error = [np.abs(body[2:-2, :, :2] - steady.body[2:-2, :, :2]).mean() for body in (shaken, calm)]
    assert error[1] < 0.8 * error[0]


def test_smoothing_is_off_by_default_and_never_uses_a_missing_point():
    rng = np.random.default_rng(1)
    bodies = np.array([figure(neck=rng.uniform(100, 200, 2)) for _ in range(9)])
    assert np.array_equal(prepare(sequence(bodies)).body, bodies)
    bodies[4, 7] = 0
    calm = smoothed(sequence(bodies)).body
    assert np.array_equal(calm[:, 7], bodies[:, 7])  # frame 4 is in each window of five
    assert not np.array_equal(calm[:, 6], bodies[:, 6])


def test_a_pose_that_is_shorter_than_the_clip_is_refused_with_the_longest_clip():
    poses = sequence([figure()] * 20)
    assert clip_of(poses, 17).num_frames == 17
    with pytest.raises(InputError, match="at most 17 frames"):
        clip_of(poses, 21)
    with pytest.raises(InputError, match=r"has 1 frame at .* at most 1 frame\."):
        clip_of(poses.at(slice(1)), 5)
