"""A standing figure of bone lengths: measured, it is the body again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pose_cases import LENGTHS

from contextanyone_core.pose.body import Body, body_of
from contextanyone_core.pose.openpose import frames_of, to_json
from contextanyone_core.pose.reading import PoseSource, poses_of
from contextanyone_core.pose.standing import standing_figure

PAIRS = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (13, 15), (14, 16))


def symmetric(seed):
    rng = np.random.default_rng(seed)
    lengths = LENGTHS * rng.uniform(0.5, 2, 17) * rng.uniform(0.01, 100)
    lengths[rng.random(17) < 0.3] = np.nan
    for right, left in PAIRS:
        lengths[left] = lengths[right]
    lengths[rng.integers(17)] = 40
    for right, left in PAIRS:
        lengths[[right, left]] = np.fmax(lengths[right], lengths[left])
    return lengths


@given(st.integers(0, 2**32 - 1))
def test_measured_it_is_the_body_again(seed):
    """Whatever bones are unknown, and through POSE_KEYPOINT."""
    lengths = symmetric(seed)
    shown = standing_figure(Body(lengths))
    keypoints = poses_of(frames_of(to_json(shown), "the figure"), PoseSource(), "the figure")
    for poses in (shown, keypoints):
        found = body_of(poses).lengths
        assert np.array_equal(np.isnan(found), np.isnan(lengths))
        ratios = (found / lengths)[~np.isnan(lengths)]
        assert ratios == pytest.approx(np.full(len(ratios), ratios[0]), rel=2e-3)
    assert 0 < shown.body[..., :2].max() < 512


def test_a_whole_body_stands_in_one_frame_on_its_feet():
    shown = standing_figure(Body(LENGTHS))
    assert shown.num_frames == 1
    body = shown.body[0]
    assert (body[:, 2] == 1).all()
    assert body[0, 1] < body[1, 1] < body[8, 1] < body[9, 1] < body[10, 1]
    assert np.ptp(body[:, :2], axis=0).max() == pytest.approx(0.8 * 512)
