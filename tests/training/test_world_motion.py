"""Free motions and limb lengths: held out by family, named by no word, and nothing of the world as it was moves."""

import numpy as np
import pytest

from training.world import KEYPOINTS, USUAL_LIMBS, Limbs, free_motion, neutral_prompts, posed_sample, sample
from training.world.actions import Pose
from training.world.captions import _ACTION_WORDS
from training.world.figure import Skeleton, Stance, draw_limbs
from training.world.motion import _AVERAGE

PINNED = {
    3: (5104.82, 183.883, 63.724),
    8: (5312.41, 180.939, 140.111),
    1000005: (5429.47, 95.066, 142.747),
}
"""Sum of the keypoints, mean of the clip and of the reference, by seed: as they were before limbs had lengths."""

BONES = {
    "arms": [("shoulder", "elbow"), ("elbow", "wrist")],
    "legs": [("hip", "knee"), ("knee", "ankle")],
}


def bone(points: np.ndarray, side: str, ends: tuple[str, str]) -> np.ndarray:
    start, end = (points[KEYPOINTS.index(f"{side}_{joint}")] for joint in ends)
    return np.asarray(end - start)


def test_usual_limbs_change_no_pixel():
    """The pools and weights that exist were made of these pixels."""
    found = {}
    for seed in (3, 8, 1_000_005):
        pair = sample(seed, 5, (64, 80))
        found[seed] = (float(pair.keypoints.sum()), float(pair.video.mean()), float(pair.reference.mean()))
    assert found == {seed: pytest.approx(numbers, abs=0.01) for seed, numbers in PINNED.items()}


def test_no_motion_of_training_raises_both_hands_above_the_head_and_every_held_out_one_does():
    rng = np.random.default_rng(0)
    for _ in range(60):
        assert not free_motion(rng).is_held_out
    for _ in range(20):
        motion = free_motion(rng, held_out=True)
        assert motion.is_held_out
        skeletons = [Skeleton(_AVERAGE, motion.pose_at(frame), Stance(0, 0, 1)) for frame in range(17)]
        raised = [max(s.joints["left_wrist"][1], s.joints["right_wrist"][1]) < s.head[1] for s in skeletons]
        assert any(raised)


def test_free_motions_are_smooth_and_move():
    rng = np.random.default_rng(1)
    for _ in range(20):
        motion = free_motion(rng)
        points = np.stack(
            [Skeleton(_AVERAGE, motion.pose_at(frame), Stance(0, 0, 1)).keypoints() for frame in range(17)]
        )
        steps = np.linalg.norm(np.diff(points, axis=0), axis=-1)
        assert steps.max() < 0.15  # of the figure's height between two frames
        assert steps.mean() > 0.002


@pytest.mark.parametrize("pose", [Pose(), Pose(crouch=0.5, lean=0.1, lift=0.05), Pose(seated=True)])
def test_limbs_change_lengths_and_no_angle(pose):
    limbs = Limbs(arms=1.2, legs=0.8, torso=1.05)
    usual = Skeleton(_AVERAGE, pose, Stance(50, 100, 90)).keypoints()
    fitted = Skeleton(_AVERAGE, pose, Stance(50, 100, 90), limbs).keypoints()
    for part, factor in (("arms", limbs.arms), ("legs", limbs.legs)):
        for ends in BONES[part][1 if pose.seated and part == "legs" else 0 :]:  # seated thighs point at the viewer
            for side in ("left", "right"):
                one, two = bone(usual, side, ends), bone(fitted, side, ends)
                assert two == pytest.approx(one * factor, abs=1e-3)


def test_limbs_stay_in_the_picture():
    rng = np.random.default_rng(2)
    for seed in range(12):
        pair = posed_sample(seed, 5, (96, 96))
        assert pair.keypoints.min() > -2
        assert pair.keypoints.max() < 98
        limbs = draw_limbs(rng)
        assert min(limbs.arms, limbs.legs) > 0.7


def test_a_posed_pair_is_fixed_by_its_seed_and_its_reference_has_the_same_body():
    one, two = posed_sample(5, 5, (48, 48)), posed_sample(5, 5, (48, 48))
    assert np.array_equal(one.video, two.video)
    assert np.array_equal(one.reference, two.reference)
    assert one.limbs == two.limbs != USUAL_LIMBS
    assert one.character == two.character
    assert {posed_sample(seed, 2, (16, 16)).free for seed in range(12)} == {True, False}


def test_no_word_names_a_free_motion():
    words = [word for options in _ACTION_WORDS.values() for option in options for word in option.split(", ")]
    for seed in range(30):
        pair = posed_sample(seed, 2, (16, 16), free=True)
        text = f"{pair.first_prompt} {pair.later_prompt}"
        assert [word for word in words if word in text] == []
        assert pair.scene.action not in neutral_prompts(pair.scene, action_named=False)[1]
    pair = posed_sample(3, 2, (16, 16), free=False)
    assert any(option in pair.later_prompt for option in _ACTION_WORDS[pair.scene.action])
