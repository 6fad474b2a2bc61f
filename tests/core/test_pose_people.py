"""People of a clip of keypoints: followed by place, chosen, and stray detections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_cases import at, figure, frame, person, read

from contextanyone_core.errors import InputError
from contextanyone_core.pose.people import follow


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
@settings(deadline=None, max_examples=25)
def test_people_are_followed_by_place_whatever_their_order(seed, count):
    rng = np.random.default_rng(seed)
    starts = np.arange(count) * 150
    frames = []
    for step in range(6):
        people = []
        for start in starts:
            whole = np.zeros((130, 3))
            whole[:18] = figure(neck=(start + 5 * step, 140))
            whole[rng.integers(0, 18, 3)] = 0
            people.append(whole)
        frames.append([people[place] for place in (range(count) if step == 0 else rng.permutation(count))])
    for track, start in zip(follow(frames), starts, strict=True):
        hips = track[:, 8]
        seen = hips[:, 2] > 0
        right = figure(neck=(start, 140))[8, 0] + 5 * np.arange(6)
        np.testing.assert_allclose(hips[seen, 0], right[seen])


def test_one_of_several_people_must_be_chosen(tmp_path):
    left, right = figure(neck=(200, 140)), figure(neck=(600, 140))
    frames = [frame(person(left), person(right)), frame(person(right)), frame(person(right), person(left))]
    with pytest.raises(InputError, match=r"shows 2 people .*1 at x 2.*2 at x 6.*--person"):
        read(tmp_path, frames)
    with pytest.raises(InputError, match="person 3 is asked for"):
        read(tmp_path, frames, person=3)
    poses = read(tmp_path, frames, person=1)
    assert poses.body[:, 1, 0].tolist() == [200, 0, 200]
    assert read(tmp_path, frames, person=2).body[:, 1, 0].tolist() == [600, 600, 600]


def test_a_newcomer_does_not_take_the_place_of_someone_who_is_hidden_for_a_moment(tmp_path):
    frames = [frame(at(200))] * 3 + [frame(at(700))] + [frame(at(200), at(700))] * 3
    with pytest.raises(InputError, match="shows 2 people"):
        read(tmp_path, frames)
    assert read(tmp_path, frames, person=1).body[:, 1, 0].tolist() == [200, 200, 200, 0, 200, 200, 200]
    assert read(tmp_path, frames, person=2).body[:, 1, 0].tolist() == [0, 0, 0, 700, 700, 700, 700]


@pytest.mark.parametrize(
    ("hidden", "far", "people"), [(0, 340, 2), (0, 300, 1), (1, 450, 1), (30, 450, 1), (30, 520, 2)]
)
def test_someone_else_is_who_appears_too_far_away(tmp_path, hidden, far, people):
    """More than a figure's height in one frame, or one and a half after an absence; never seen together."""
    frames = [frame(at(200))] * 5 + [frame()] * hidden + [frame(at(200 + far))] * 5
    if people == 1:
        assert (read(tmp_path, frames).body[-5:, 1, 0] == 200 + far).all()
    else:
        told = rf"2 people .*--person 1\. They are never seen together: .* cut the clip there \(frame {5 + hidden}\)\.$"
        with pytest.raises(InputError, match=told):
            read(tmp_path, frames)


@pytest.mark.parametrize(
    ("points", "frames", "ignored"), [(18, 1, True), (18, 3, True), (18, 4, False), (3, 15, True), (4, 15, False)]
)
def test_stray_detections_beside_somebody_are_ignored_with_a_remark(tmp_path, points, frames, ignored):
    stray = person(figure(neck=(750, 140)) * (np.arange(18) < points)[:, None])
    content = [frame(at(200), *[stray] * (1 <= step <= frames)) | {"fps": 16} for step in range(16)]
    if not ignored:
        with pytest.raises(InputError, match="shows 2 people"):
            read(tmp_path, content)
        return
    poses = read(tmp_path, content)
    assert (poses.body[:, 1, 0] == 200).all()
    assert len(poses.remarks) == 1
    assert "stray detections, which are ignored (1 at x 7" in poses.remarks[0]
    assert poses.placed((64, 64)).at([0]).remarks == poses.remarks
    with pytest.raises(InputError, match=r"person 2 is asked for; .* shows 1"):
        read(tmp_path, content, person=2)


def test_short_clips_and_stills_have_no_stray_people(tmp_path):
    assert read(tmp_path, [frame(at(200))]).remarks == ()
    for content in ([frame(at(200), at(700))], [frame(at(200))] * 14 + [frame(at(200), at(700))]):
        with pytest.raises(InputError, match="shows 2 people"):
            read(tmp_path, content)


def test_a_figure_of_one_point_is_followed_too(tmp_path):
    one = figure() * (np.arange(18) == 0)[:, None]
    frames = [frame(person(one + one.any(axis=1)[:, None] * (90 * step, 0, 0))) for step in range(4)]
    assert read(tmp_path, frames).body[:, 0, 2].tolist() == [1, 1, 1, 1]
