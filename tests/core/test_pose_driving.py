"""The poses that a video follows, as the command line and the nodes take them."""

import numpy as np
import pytest
from pose_cases import figure, sequence

from contextanyone_core.errors import InputError
from contextanyone_core.generation.conditions import check_window
from contextanyone_core.pose.body import body_of
from contextanyone_core.pose.drawing import FULL_SIZE, MINIATURE, draw_poses
from contextanyone_core.pose.drawn import at_rate
from contextanyone_core.pose.driving import DrivingPose, driven_by, where_nobody_is
from contextanyone_core.pose.fitting import fit


def dance(frames=6, **changed):
    bodies = [figure(neck=(160.0, 60.0 + frame), lengths=np.full(17, 30.0)) for frame in range(frames)]
    return sequence(bodies, (320, 320))


def test_keypoints_are_cut_placed_and_drawn():
    driving = driven_by(dance(), None, None, "the dance")
    assert (driving.num_frames, driving.what_is_cut(6)) == (6, "")
    assert driving.what_is_cut(5) == "the dance has 6 frames at 16 a second; the first 5 are used"
    clip = driving.for_clip(5, (64, 96))
    drawn = clip.pictures(MINIATURE)
    assert np.array_equal(drawn, draw_poses(dance().at(slice(5)).placed((64, 96)), MINIATURE))
    with pytest.raises(InputError, match="ask for at most 5 frames"):
        driving.for_clip(9, (64, 96))


def test_a_drawn_video_is_the_same_pose():
    drawn = DrivingPose("the video", draw_poses(dance().placed((64, 96)), FULL_SIZE))
    keys = driven_by(dance(), None, None, "the dance").for_clip(5, (64, 96))
    taken = drawn.for_clip(5, (64, 96))
    assert np.array_equal(taken.pictures(FULL_SIZE), keys.pictures(FULL_SIZE))
    assert np.abs(taken.pictures(MINIATURE)[0, 0, 0].astype(int) - 127).max() == 0
    with pytest.raises(InputError, match="is 96 x 64 pixels, the video 64 x 64; drawn poses are never resized"):
        drawn.for_clip(5, (64, 64))
    with pytest.raises(InputError, match=r"the video has 6 frames .* the clip 9; ask for at most 5\."):
        drawn.for_clip(9, (64, 96))


def test_the_fit_is_bones_with_a_body_and_else_none():
    body = body_of(sequence([figure(neck=(160.0, 60.0), lengths=np.linspace(20, 50, 17))], (320, 320)))
    for given, how, same_as in ((body, None, "bones"), (None, None, "none"), (body, "none", "none")):
        taken = driven_by(dance(), given, how, "x").poses
        assert np.array_equal(taken.body, fit(dance(), given, same_as).body)


def test_nobody_in_the_first_frames_is_refused():
    late = dance(9)
    hidden = late.body.copy()
    hidden[:6] = 0
    poses = sequence(list(hidden), (320, 320))
    with pytest.raises(InputError, match="the dance shows nobody in its first 5 frames"):
        driven_by(poses, None, None, "the dance").for_clip(5, (64, 64))


def test_frames_that_show_nobody_are_told_with_their_numbers():
    """A detector that loses the dancer leaves gaps that are too long to fill: nothing is drawn there."""
    lost = dance(40)
    hidden = lost.body.copy()
    hidden[[3, *range(8, 20), 39]] = 0  # a gap that is filled, one that is not, and the end
    driving = driven_by(sequence(list(hidden), (320, 320)), None, None, "the dance")
    gap = "nobody is seen in 12 of the 37 frames at 16 a second (frames 8 to 19): the pose is empty there"
    assert driving.told_of(37) == (driving.what_is_cut(37), f"the dance: {gap}")
    assert driving.told_of(40)[0].startswith("the dance: nobody is seen in 13 of the 40 frames")
    assert driving.told_of(40)[0].endswith("(frames 8 to 19, 39): the pose is empty there")
    assert driving.told_of(5) == (driving.what_is_cut(5),)
    many = dance(60).body.copy()
    many[[frame for start in range(1, 50, 8) for frame in range(start, start + 6)]] = 0
    assert where_nobody_is(sequence(list(many), (320, 320))).count(" to ") == 4
    assert driven_by(dance(), None, None, "the dance").told_of(6) == ()


def test_the_preview_keeps_the_aspect_and_only_the_first_frames():
    keys = driven_by(sequence([figure(neck=(300.0, 60.0), lengths=np.full(17, 30.0))] * 6, (240, 640)), None, None, "x")
    assert keys.preview(160, 4).shape == (4, 60, 160, 3)
    drawn = DrivingPose("x", np.zeros((6, 480, 832, 3), np.uint8))
    assert drawn.preview(384, 4).shape == (4, 160, 278, 3)


@pytest.mark.parametrize(("fps", "wanted"), [(16, range(6)), (32, [0, 2, 4]), (8, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5])])
def test_drawn_frames_are_taken_whole(fps, wanted):
    frames = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, axis=3)
    assert at_rate(frames, fps)[:, 0, 0, 0].tolist() == list(wanted)


def test_a_window_is_two_shares_in_order():
    check_window((0.2, 0.2))
    for window in ((0.5, 0.4), (-0.1, 1.0), (0.0, float("nan"))):
        with pytest.raises(InputError, match="two shares of the steps from 0 to 1 are needed, the lower first"):
            check_window(window)
