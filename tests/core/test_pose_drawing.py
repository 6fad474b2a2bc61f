"""Drawing poses: the dialect's colours and widths, equality with OpenCV's drawing, and other backgrounds."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from pose_cases import dances, figure, sequence

from contextanyone_core.errors import InputError
from contextanyone_core.media.read_video import open_video
from contextanyone_core.media.video_io import write_clip
from contextanyone_core.pose.body import BONES
from contextanyone_core.pose.drawing import (
    FULL_SIZE,
    HAND_COLORS,
    HAND_LINES,
    JOINT_COLORS,
    LIMB_COLORS,
    MINIATURE,
    PoseStyle,
    draw_poses,
)
from contextanyone_core.pose.drawn import inspect_drawn, recolour
from contextanyone_core.pose.sequence import SEEN

GREY = (127, 127, 127)


def whole_figure():
    """A body with both hands and a face, 832 x 480."""
    body, hands, face = figure(), np.ones((1, 2, 21, 3)), np.ones((1, 70, 3))
    for side, wrist in enumerate((7, 4)):
        hands[0, side, 0, :2] = body[wrist, :2]
        for finger in range(5):
            turn = 0.3 + 0.5 * finger
            for joint in range(4):
                reach = 9 * (joint + 1.5)
                hands[0, side, 1 + 4 * finger + joint, :2] = body[wrist, :2] + reach * np.array(
                    [np.cos(turn), np.sin(turn)]
                )
    turns = np.linspace(0, 2 * np.pi, 70, endpoint=False)
    face[0, :, :2] = body[0, :2] + np.stack([26 * np.cos(turns), 34 * np.sin(turns)], axis=1)
    return sequence([body], hands=hands, face=face)


def drawn_by_opencv(poses):
    """The first frame as DWPose's drawing describes it, on black: whole pixels, hard edges."""
    canvas = np.zeros((poses.height, poses.width, 3), np.uint8)
    body = poses.body[0]
    for (parent, child), (red, green, blue) in zip(BONES, JOINT_COLORS, strict=False):
        (x0, y0), (x1, y1) = body[parent, :2], body[child, :2]
        turn, half = np.degrees(np.arctan2(y1 - y0, x1 - x0)), np.hypot(x1 - x0, y1 - y0) / 2
        corners = cv2.ellipse2Poly((int((x0 + x1) / 2), int((y0 + y1) / 2)), (int(half), 4), int(turn), 0, 360, 1)
        cv2.fillConvexPoly(canvas, corners, (int(red * 0.6), int(green * 0.6), int(blue * 0.6)))
    for (x, y, _), color in zip(body, JOINT_COLORS, strict=True):
        cv2.circle(canvas, (int(x), int(y)), 4, color, -1)
    for hand in poses.hands[0].astype(int):
        for (one, other), color in zip(HAND_LINES, HAND_COLORS, strict=True):
            cv2.line(canvas, hand[one, :2].tolist(), hand[other, :2].tolist(), color, 2)
        for x, y, _ in hand.tolist():
            cv2.circle(canvas, (x, y), 4, (0, 0, 255), -1)
    for x, y, _ in poses.face[0].astype(int).tolist():
        cv2.circle(canvas, (x, y), 3, (255, 255, 255), -1)
    return canvas


def test_the_drawing_is_opencvs_but_for_the_edges():
    poses = whole_figure()
    ours, theirs = draw_poses(poses)[0], drawn_by_opencv(poses)
    kernel = np.ones((5, 5), np.uint8)
    flat = cv2.dilate(theirs, kernel) == cv2.erode(theirs, kernel)  # no edge within two pixels: theirs are whole ones
    flat = flat.all(axis=-1)
    apart = np.abs(ours.astype(int) - theirs)[flat].max(axis=-1)
    assert flat.mean() > 0.95
    assert (theirs[flat].max(axis=-1) > 0).sum() > 1000
    assert apart.max() <= 8, (apart > 8).sum()
    area = [(picture.astype(float).max(axis=-1) / 255).sum() for picture in (ours, theirs)]
    assert area[0] == pytest.approx(area[1], rel=0.06)


def test_colours_go_round_the_hue_circle_and_limbs_are_darkened():
    assert JOINT_COLORS[0] == (255, 0, 0)
    assert JOINT_COLORS[-1] == (255, 0, 85)
    steps = [np.abs(np.subtract(one, other)).sum() for one, other in pairwise(JOINT_COLORS)]
    assert set(steps) == {85}
    assert len(set(JOINT_COLORS)) == 18
    assert LIMB_COLORS[1] == (153, 51, 0)
    assert HAND_COLORS[0] == (255, 0, 0)
    frame = draw_poses(sequence([figure()]))[0]
    body = figure()
    for joint, color in enumerate(JOINT_COLORS):
        x, y = body[joint, :2].astype(int)
        assert np.array_equal(frame[y, x], color), joint
    for bone in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11):  # long enough to be seen between the joints
        x, y = body[list(BONES[bone]), :2].mean(axis=0).astype(int)
        assert np.array_equal(frame[y, x], LIMB_COLORS[bone]), bone


@pytest.mark.parametrize(("style", "width"), [(FULL_SIZE, 8), (MINIATURE, 3)])
def test_limbs_have_their_width_at_any_size_of_the_picture(style, width):
    for factor in (1.0, 2.0):
        poses = sequence([figure()]).moved(factor, (0, 0), (int(480 * factor), int(832 * factor)))
        body = np.zeros((1, 18, 3))
        body[0, 9:11] = poses.body[0, 9:11]  # a shin
        body[0, 9, 0] = body[0, 10, 0] = 400.0
        frame = draw_poses(sequence(body, (poses.height, poses.width)), style)[0]
        row = frame[int(body[0, 9:11, 1].mean())].astype(float)
        drawn = np.abs(row - style.background).max(axis=-1)
        assert drawn.sum() / drawn.max() == pytest.approx(width, abs=0.3)


def test_a_limb_needs_both_ends_and_a_point_its_score():
    body = figure()
    body[3, 2] = SEEN
    whole, less = draw_poses(sequence([figure()]))[0], draw_poses(sequence([body]))[0]
    x, y = body[3, :2].astype(int)
    assert whole[y, x].any()
    assert not less[y, x].any()
    x, y = body[[3, 4], :2].mean(axis=0).astype(int)
    assert not less[y, x].any()
    x, y = body[4, :2].astype(int)
    assert np.array_equal(less[y, x], JOINT_COLORS[4])


def test_nobody_is_the_background_and_points_outside_are_cut():
    assert (draw_poses(sequence(np.zeros((2, 18, 3))), MINIATURE) == 127).all()
    poses = sequence([figure()])
    for shift in ((-400, 0), (700, 300), (1e7, -1e7)):
        frame = draw_poses(poses.moved(1, shift, (480, 832)))
        assert frame.shape == (1, 480, 832, 3)
    inside = draw_poses(poses.moved(1, (40, 20), (600, 1000)))[0, 20:500, 40:872]
    assert np.array_equal(draw_poses(poses)[0], inside)


def test_the_face_can_be_left_out():
    poses = whole_figure()
    faceless = sequence(poses.body, hands=poses.hands)
    assert np.array_equal(draw_poses(poses, PoseStyle(face=False)), draw_poses(faceless))
    assert not np.array_equal(draw_poses(poses), draw_poses(faceless))


@pytest.mark.parametrize(("old", "new"), [((0, 0, 0), GREY), (GREY, (0, 0, 0))])
def test_a_drawing_on_another_background_is_recoloured_as_if_drawn_there(old, new):
    poses = whole_figure()
    moved = recolour(draw_poses(poses, PoseStyle(old)), new)
    apart = np.abs(moved.astype(int) - draw_poses(poses, PoseStyle(new)))
    assert apart.mean() < 0.1
    assert (apart.max(axis=-1) > 24).mean() < 2e-3  # of edges between two colours


@pytest.mark.parametrize("style", [FULL_SIZE, MINIATURE])
def test_a_compressed_drawing_keeps_its_colours(tmp_path, style):
    """A video of poses on black, as people have it: inside of limbs there is no background to exchange."""
    poses = sequence([figure(neck=(300 + 9 * step, 140)) for step in range(5)]).placed((128, 208))
    frames, wanted = (draw_poses(poses, PoseStyle(old, half_width=style.half_width)) for old in ((0, 0, 0), GREY))
    write_clip(tmp_path / "drawn.mp4", frames, {})
    given = np.stack(list(open_video(tmp_path / "drawn.mp4").frames))
    inside = np.stack([cv2.erode((frame != GREY).any(axis=-1).astype(np.uint8), np.ones((3, 3))) for frame in wanted])
    moved = recolour(given, GREY).astype(int)
    changed = np.abs(moved - given).max(axis=-1) > 24
    assert inside.mean() > 5e-3
    assert changed[inside > 0].mean() < 0.1
    assert np.abs(moved - wanted).mean() < 1.5 * np.abs(given.astype(int) - frames).mean()


@given(dances(max_frames=2))
@settings(deadline=None, max_examples=10)
def test_the_background_is_found_and_the_skeleton_seen(poses):
    poses = poses.placed((192, 320))
    for background in ((0, 0, 0), GREY, (255, 255, 255)):
        frames = draw_poses(poses, PoseStyle(background, half_width=2.0))
        rng = np.random.default_rng(0)
        noisy = (frames + rng.integers(-3, 4, frames.shape)).clip(0, 255).astype(np.uint8)  # as after a codec
        found = inspect_drawn(noisy)
        assert np.abs(np.subtract(found.background, background)).max() <= 2
        assert found.shows_skeleton
        assert recolour(noisy, background) is noisy


def test_what_is_no_drawing_is_refused_and_an_empty_one_found():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="no plain background"):
        inspect_drawn(rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    plain = np.full((2, 64, 64, 3), 9, np.uint8)
    assert not inspect_drawn(plain).shows_skeleton
    foreign = plain.copy()
    foreign[:, 10:40, 10:40] = (120, 90, 60)  # a brown square on black
    assert not inspect_drawn(foreign).shows_skeleton
    with pytest.raises(InputError, match="not DWPose's"):
        recolour(foreign, GREY)
