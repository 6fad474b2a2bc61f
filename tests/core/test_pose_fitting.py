"""Fitting poses to another body: the laws of `bones` and of `affine`."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_cases import ANGLES, LENGTHS, NECK, angles_of, dances, figure, lengths_of, sequence, standing
from safetensors.numpy import save_file

from contextanyone_core.errors import InputError
from contextanyone_core.pose.body import (
    BONES,
    PERSONAL_KEY,
    Body,
    body_of,
    bone_lengths,
    read_personal_body,
    stated_lengths,
)
from contextanyone_core.pose.fitting import RATIO, bone_ratios, fit, fit_affine, fit_bones
from contextanyone_core.pose.sequence import BODY_18, SEEN

NAMES = {name: index for index, name in enumerate(BODY_18)}
RIGHT = [NAMES[name] for name in BODY_18 if name.startswith("right")]
LEFT = [NAMES[BODY_18[index].replace("right", "left")] for index in RIGHT]


def test_bones_are_a_tree_rooted_at_the_neck_along_openposes_limbs():
    limbs = "2-3 2-6 3-4 4-5 6-7 7-8 2-9 9-10 10-11 2-12 12-13 13-14 2-1 1-15 15-17 1-16 16-18"  # counted from 1
    assert " ".join(f"{parent + 1}-{child + 1}" for parent, child in BONES) == limbs
    reached = {NAMES["neck"]}
    for parent, child in BONES:
        assert parent in reached
        assert child not in reached
        reached.add(child)
    assert reached == set(range(18))


@given(dances(missing=True))
@settings(deadline=None, max_examples=30)
def test_a_bodys_own_lengths_give_the_same_poses(driver):
    fitted = fit_bones(driver, body_of(driver))
    np.testing.assert_allclose(fitted.whole, driver.whole, atol=1e-9)


@given(dances(), dances())
@settings(deadline=None, max_examples=30)
def test_angles_never_change_and_bones_have_the_bodys_proportions(driver, other):
    fitted = fit_bones(driver, body_of(other))
    ratios = bone_ratios(driver, body_of(other))
    assert ((ratios >= RATIO[0]) & (ratios <= RATIO[1])).all()
    for before, after in zip(driver.body, fitted.body, strict=True):
        np.testing.assert_allclose(angles_of(after), angles_of(before), atol=1e-9)
        np.testing.assert_allclose(lengths_of(after), ratios * lengths_of(before), atol=1e-9)


@given(dances(missing=True), dances())
@settings(deadline=None, max_examples=30)
def test_angles_of_bones_with_both_ends_do_not_change_where_others_are_missing(driver, other):
    fitted = fit_bones(driver, body_of(other))
    assert np.array_equal(fitted.body[..., 2], driver.body[..., 2])
    for before, after in zip(driver.body, fitted.body, strict=True):
        seen = np.array([min(before[parent, 2], before[child, 2]) > SEEN for parent, child in BONES])
        np.testing.assert_allclose(angles_of(after)[seen], angles_of(before)[seen], atol=1e-9)


TRUNK = [0, 1, 6, 9]  # bones that begin at the neck, without the head's
HIDDEN = st.lists(st.sampled_from(["", "right_shoulder", "left_shoulder", "both"]), min_size=8, max_size=8)


def with_hidden_shoulders(bodies, hidden):
    """Bodies (8, 18, 3) as COCO's detectors give them: without a shoulder there is no neck."""
    bodies = bodies.copy()
    for body, name in zip(bodies, hidden, strict=True):
        sides = ("right_shoulder", "left_shoulder") if name == "both" else (name,) if name else ()
        for side in sides:
            body[[NAMES[side], NAMES["neck"]]] = 0
    return bodies


@given(st.integers(0, 2**32 - 1), HIDDEN, st.floats(0.55, 1.9))
@settings(deadline=None, max_examples=30)
def test_a_trunk_keeps_its_proportions_where_the_neck_is_not_seen(seed, hidden, factor):
    """Any dance: as far as shoulders and hips are seen, the distances between them are the body's in every frame."""
    rng = np.random.default_rng(seed)
    dance = np.array(
        [figure(ANGLES + rng.normal(0, 0.6, 17), neck=rng.uniform((250, 100), (450, 180), 2)) for _ in hidden]
    )
    lengths = LENGTHS.copy()
    lengths[TRUNK] *= factor
    driver = sequence(with_hidden_shoulders(dance, ["", *hidden[1:]]))
    fitted = fit_bones(driver, Body(lengths * bone_lengths(driver) / LENGTHS))
    trunk = [NAMES[f"{side}_{part}"] for side in ("right", "left") for part in ("shoulder", "hip")]
    for before, after in zip(driver.body, fitted.body, strict=True):
        seen = [joint for joint in trunk if before[joint, 2] > SEEN]
        across = [np.linalg.norm(body[seen, None, :2] - body[None, seen, :2], axis=-1) for body in (before, after)]
        np.testing.assert_allclose(across[1], factor * across[0], atol=1e-6)
        assert np.array_equal(after[:, 2], before[:, 2])


@given(HIDDEN, dances())
@settings(deadline=None, max_examples=30)
def test_the_figure_does_not_pop_where_the_neck_is_not_seen(hidden, other):
    """Someone who walks by without a change of posture is fitted as if all of the trunk were seen."""
    walk = np.array([figure(neck=(200 + 10 * step, 140)) for step in range(8)])
    driver = sequence(with_hidden_shoulders(walk, ["", *hidden[1:]]))
    whole, fitted = (fit_bones(poses, body_of(other)).body for poses in (sequence(walk), driver))
    seen = driver.body[..., 2] > SEEN
    for side in ("right", "left"):  # an arm without its shoulder takes the mean ratio up to the neck
        seen[:, [NAMES[f"{side}_elbow"], NAMES[f"{side}_wrist"]]] &= seen[:, [NAMES[f"{side}_shoulder"]]]
    np.testing.assert_allclose(fitted[seen], whole[seen], atol=1e-6)


def test_a_neck_that_no_frame_shows_is_at_the_shoulder_that_is_seen():
    """A profile, by COCO: hips and legs hang on the shoulder, and a neck that is not there does not appear."""
    bodies = with_hidden_shoulders(
        np.array([figure(neck=(200 + 10 * step, 140)) for step in range(8)]), ["left_shoulder"] * 8
    )
    lengths = LENGTHS.copy()
    lengths[[7, 8, 10, 11]] *= 0.7
    fitted = fit_bones(sequence(bodies), body_of(standing(lengths=lengths))).body
    assert (fitted[:, NAMES["neck"]] == 0).all()
    off = fitted[:, NAMES["right_hip"], :2] - fitted[:, NAMES["right_shoulder"], :2]
    np.testing.assert_allclose(off, (bodies[:, 8] - bodies[:, 2])[:, :2], atol=1e-9)


@given(dances(missing=True), dances(), st.floats(0.05, 20), st.floats(0.05, 20))
@settings(deadline=None, max_examples=30)
def test_scaling_canvas_and_points_together_changes_no_result_relative_to_it(driver, other, of_driver, of_body):
    plain = fit_bones(driver, body_of(other))
    size = (round(driver.height * of_driver), round(driver.width * of_driver))
    scaled = fit_bones(driver.moved(of_driver, (0, 0), size), body_of(other.moved(of_body, (0, 0), (9, 9))))
    np.testing.assert_allclose(scaled.whole[..., :2] / of_driver, plain.whole[..., :2], rtol=1e-6, atol=1e-6)


@given(dances(missing=True), dances(), st.floats(-500, 500), st.floats(-500, 500))
@settings(deadline=None, max_examples=30)
def test_moving_the_driver_moves_the_result_as_far(driver, other, right, down):
    size = (driver.height, driver.width)
    moved = fit_bones(driver.moved(1, (right, down), size), body_of(other))
    plain = fit_bones(driver, body_of(other)).moved(1, (right, down), size)
    np.testing.assert_allclose(moved.whole, plain.whole, atol=1e-8)


@given(dances(), dances())
@settings(deadline=None, max_examples=30)
def test_left_and_right_are_not_exchanged(driver, other):
    """Both sides have one length, and fitting a mirrored driver with its names exchanged is the mirrored result."""

    def mirrored(poses):
        body = poses.body.copy()
        body[:, RIGHT + LEFT] = poses.body[:, LEFT + RIGHT]
        body[..., 0] = poses.width - body[..., 0]
        return replace(poses, body=body)

    one, two = fit_bones(mirrored(driver), body_of(other)), mirrored(fit_bones(driver, body_of(other)))
    np.testing.assert_allclose(one.body, two.body, atol=1e-9)
    raised = ANGLES.copy()
    raised[[2, 3]] = np.radians(-80)  # the right arm, at the picture's left
    fitted = fit_bones(standing(angles=raised), body_of(other)).body[0]
    assert fitted[NAMES["right_wrist"], 1] < fitted[NAMES["neck"], 1] < fitted[NAMES["left_wrist"], 1]
    assert fitted[NAMES["right_shoulder"], 0] < fitted[NAMES["neck"], 0] < fitted[NAMES["left_shoulder"], 0]


def longer_legs(factor):
    lengths = LENGTHS.copy()
    lengths[[7, 8, 10, 11]] *= factor
    return lengths


def test_the_ratios_median_is_divided_out_before_they_are_clipped():
    ratios = bone_ratios(standing(), body_of(standing(lengths=100 * longer_legs(1.5))))
    np.testing.assert_allclose(ratios[[7, 8, 10, 11]], 1.5)
    np.testing.assert_allclose(np.delete(ratios, [7, 8, 10, 11]), 1)
    assert bone_ratios(standing(), body_of(standing(lengths=longer_legs(3)))).max() == RATIO[1]


def test_a_bone_that_is_not_seen_takes_the_median_ratio():
    body = figure(lengths=3 * longer_legs(1.5))
    body[[NAMES["right_wrist"], NAMES["left_wrist"]]] = 0
    ratios = bone_ratios(standing(), body_of(sequence([body])))
    assert ratios[3] == ratios[5] == 1


def test_lengths_are_the_90th_percentile_of_a_clip_and_those_of_a_picture():
    frames = [figure(lengths=LENGTHS * share) for share in np.linspace(0.2, 1, 11)]  # limbs that point at the viewer
    np.testing.assert_allclose(bone_lengths(sequence(frames)), LENGTHS * np.percentile(np.linspace(0.2, 1, 11), 90))
    np.testing.assert_allclose(bone_lengths(standing()), LENGTHS)


def test_left_and_right_share_the_longer_and_one_side_stands_for_both():
    lengths = LENGTHS.copy()
    lengths[3] = 80  # the right forearm; the left one has 50
    assert bone_lengths(standing(lengths=lengths))[5] == pytest.approx(80)
    body = figure()
    body[NAMES["left_wrist"]] = 0
    assert bone_lengths(sequence([body]))[5] == pytest.approx(50)


def test_feet_that_stand_keep_standing_and_hips_follow_the_path_scaled_by_leg_length():
    """A walker who also squats: longer legs lift the hips, never the feet."""
    frames = []
    for step in range(8):
        angles = ANGLES.copy()
        bend = 0.1 * step
        angles[[7, 8]] = np.pi / 2 + np.array([bend, -bend])
        angles[[10, 11]] = np.pi / 2 - np.array([bend, -bend])
        body = figure(angles, neck=(200 + 20 * step, 0))
        body[:, 1] += 400 - body[[10, 13], 1].max()
        frames.append(body)
    fitted = fit_bones(sequence(frames), body_of(standing(lengths=longer_legs(1.4))))
    np.testing.assert_allclose(fitted.body[:, [10, 13], 1].max(axis=1), 400, atol=1e-9)
    hips = fitted.body[:, [8, 11], 0].mean(axis=1)
    np.testing.assert_allclose(np.diff(hips), 1.4 * 20, atol=1e-9)
    assert hips.mean() == pytest.approx(np.array(frames)[:, [8, 11], 0].mean()), "the middle of the path stays"
    assert (fitted.body[:, 8, 1] < np.array(frames)[:, 8, 1]).all()


def test_a_fit_that_leaves_the_picture_is_remarked():
    """Longer legs under a head that is near the upper edge; what was off the picture before is no matter."""
    frames = [figure(neck=(300, 70 + 30 * step)) for step in range(6)]
    longer = body_of(standing(lengths=longer_legs(1.6)))
    (remark,) = fit(sequence(frames), longer, "bones").remarks
    high = fit_bones(sequence(frames), longer).body[..., 1].min(axis=1) < -0.01 * 480
    assert 0 < high.sum() < 6
    assert f"leaves the picture in {high.sum()} of 6 frames, most often with the " in remark
    assert fit(sequence(frames), body_of(standing()), "bones").remarks == ()
    assert fit(sequence([figure(neck=(300, -500))]), longer, "bones").remarks == ()


def test_a_jump_is_as_high_as_the_legs_are_long():
    frames = [figure(neck=(300, 140 - height)) for height in (0, 30, 0)]
    fitted = fit_bones(sequence(frames), body_of(standing(lengths=longer_legs(0.8))))
    feet = fitted.body[:, [10, 13], 1].max(axis=1)
    ground = frames[0][[10, 13], 1].max()
    np.testing.assert_allclose(feet, [ground, ground - 0.8 * 30, ground], atol=1e-9)


def test_legs_count_by_their_whole_length():
    """A longer thigh and the same shin: paths are scaled by the ratio of the sums, not by the mean of the ratios."""
    before, lengths = LENGTHS.copy(), LENGTHS.copy()
    before[[8, 11]] *= 0.5
    lengths[[8, 11]] *= 0.5
    lengths[[7, 10]] *= 1.6
    walk = sequence([figure(lengths=before, neck=(200 + 20 * step, 140)) for step in range(4)])
    hips = fit_bones(walk, body_of(standing(lengths=lengths))).body[:, [8, 11], 0].mean(axis=1)
    np.testing.assert_allclose(np.diff(hips), 20 * lengths[7:9].sum() / before[7:9].sum(), atol=1e-9)


def test_the_figure_does_not_jump_where_the_feet_are_hidden_for_a_moment():
    frames = np.array([figure(neck=(300 + 4 * step, 140)) for step in range(9)])
    whole = fit_bones(sequence(frames), body_of(standing(lengths=longer_legs(1.4))))
    frames[3:6, [9, 10, 12, 13]] = 0
    hidden = fit_bones(sequence(frames), body_of(standing(lengths=longer_legs(1.4))))
    np.testing.assert_allclose(hidden.body[:, :9], whole.body[:, :9], atol=1e-9)


def test_hands_and_face_go_with_wrists_and_nose():
    hands = np.zeros((1, 2, 21, 3))
    body = figure()
    for side, wrist in enumerate(("left_wrist", "right_wrist")):
        hands[0, side] = body[NAMES[wrist]] + np.array([3.0, -5.0, 0])
    face = np.full((1, 70, 3), 1.0)
    face[0, :, :2] = body[0, :2] + (2.0, 1.0)
    driver = sequence([body], hands=hands, face=face)
    lengths = LENGTHS.copy()
    lengths[[3, 5]] *= 1.5
    lengths[13:] *= 0.7
    fitted = fit_bones(driver, body_of(standing(lengths=lengths)))
    for side, wrist in enumerate(("left_wrist", "right_wrist")):
        off = fitted.hands[0, side, :, :2] - fitted.body[0, NAMES[wrist], :2]
        np.testing.assert_allclose(off, np.tile((4.5, -7.5), (21, 1)), atol=1e-9)
    np.testing.assert_allclose(fitted.face[0, :, :2] - fitted.body[0, 0, :2], np.tile((1.4, 0.7), (70, 1)), atol=1e-9)


@given(st.floats(0.2, 5), st.floats(-200, 200), st.floats(-200, 200), dances())
@settings(deadline=None, max_examples=30)
def test_affine_finds_the_enlargement_and_shift_of_a_picture(factor, right, down, driver):
    still = sequence([driver.body[0]] * 3)
    target = still.at([0]).moved(factor, (right, down), (640, 360))
    fitted = fit_affine(still, body_of(target))
    assert (fitted.width, fitted.height) == (360, 640)
    np.testing.assert_allclose(fitted.body[1, :, :2], target.body[0, :, :2], atol=1e-6)


def test_fits_refuse_what_does_not_serve():
    with pytest.raises(InputError, match="none, affine, bones"):
        fit(standing(), None, "stretch")
    with pytest.raises(InputError, match="needs a body"):
        fit(standing(), None, "bones")
    with pytest.raises(InputError, match="use bones"):
        fit(standing(), Body(LENGTHS), "affine")
    arm = np.zeros((18, 3))
    arm[2:4] = figure()[2:4]
    legs = np.zeros((18, 3))
    legs[8:10] = figure()[8:10]
    with pytest.raises(InputError, match="no bone in common"):
        fit(sequence([arm]), body_of(sequence([legs])), "bones")
    with pytest.raises(InputError, match="shows no bone"):
        body_of(sequence([figure() * (np.arange(18) == 3)[:, None]]))
    assert fit(standing(), None, "none").body[0, 1].tolist() == [*NECK, 1]


def test_a_personal_files_header_has_the_lengths(tmp_path):
    lengths = LENGTHS.copy()
    lengths[0] = np.nan
    path = tmp_path / "me.safetensors"
    tensors = {"x": np.zeros(1, np.float32)}
    save_file(tensors, path, {PERSONAL_KEY: json.dumps({"bones": stated_lengths(Body(lengths))})})
    np.testing.assert_array_equal(read_personal_body(path).lengths, lengths)
    wrong = ([1, 2], {}, "no", [0] * 17, [None] * 17, ["1"] * 17, [True] * 17, [1.0, *[[]] * 16], [float("inf")] * 17)
    for bones in wrong:
        save_file(tensors, path, {PERSONAL_KEY: json.dumps({"bones": bones})})
        with pytest.raises(InputError, match="17 numbers above 0"):
            read_personal_body(path)
    for text in ("no", "[" * 100_000):
        save_file(tensors, path, {PERSONAL_KEY: text})
        with pytest.raises(InputError, match="not JSON"):
            read_personal_body(path)
    for metadata in ({}, {PERSONAL_KEY: "{}"}, {PERSONAL_KEY: "null"}):
        save_file(tensors, path, metadata)
        with pytest.raises(InputError, match="give keypoints"):
            read_personal_body(path)
