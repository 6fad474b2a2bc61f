"""The character world's joints as poses: which point becomes which, and that they can be drawn for the miniature."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from contextanyone_core.pose.body import body_of
from contextanyone_core.pose.drawing import JOINT_COLORS, MINIATURE, draw_poses
from contextanyone_core.pose.fitting import fit_bones
from contextanyone_core.pose.layouts import to_whole
from contextanyone_core.pose.reading import PoseSource, read_poses
from contextanyone_core.pose.sequence import BODY_18, PoseSequence, sequence_of
from training.world import KEYPOINTS, sample


def world_poses(seed: int) -> PoseSequence:
    keypoints = sample(seed).keypoints
    scored = np.concatenate([keypoints, np.ones((*keypoints.shape[:2], 1))], axis=2)
    return sequence_of(to_whole(scored, "body14"), (128, 128), 16)


def test_the_worlds_left_is_the_pictures_left_which_is_the_persons_right():
    exchanged = {"left": "right", "right": "left"}
    for index, name in enumerate(KEYPOINTS):
        side, _, part = name.partition("_")
        expected = "nose" if name == "head" else f"{exchanged[side]}_{part}" if part else name
        assert BODY_18[index] == expected
    assert len(KEYPOINTS) == 14


def test_a_pose_file_of_the_world_is_read(tmp_path):
    poses = world_poses(3)
    keypoints = poses.body[:, :14].astype(np.float32)
    states = {"layout": "body14", "width": "128", "height": "128", "fps": "16"}
    save_file({"keypoints": keypoints}, tmp_path / "pose.safetensors", states)
    assert np.array_equal(read_poses(tmp_path / "pose.safetensors", PoseSource()).body, poses.body)


@pytest.mark.parametrize("seed", range(4))
def test_world_poses_are_drawn_on_grey_where_the_joints_are(seed):
    poses = world_poses(seed)
    frames = draw_poses(poses, MINIATURE)
    assert frames.shape == (17, 128, 128, 3)
    assert np.array_equal(frames[0, 0, 0], (127, 127, 127))
    drawn = (frames != 127).any(axis=-1)
    assert 0.01 < drawn.mean() < 0.1
    for frame in (0, 16):
        x, y = poses.body[frame, 0, :2]  # the nose, which nothing covers
        around = frames[frame, int(y - 1) : int(y + 2), int(x - 1) : int(x + 2)].reshape(-1, 3).astype(int)
        assert np.abs(around - JOINT_COLORS[0]).sum(axis=1).min() < 20


def test_a_worlds_dance_fits_a_world_body_with_other_proportions():
    driver, other = world_poses(0), world_poses(1)
    fitted = fit_bones(driver, body_of(other))
    assert np.isfinite(fitted.whole).all()
    own = fit_bones(driver, body_of(driver))
    np.testing.assert_allclose(own.body, driver.body, atol=1e-9)
