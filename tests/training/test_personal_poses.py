"""Poses given to `personalize.py`: at another rate than the clip's."""

from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.pose.pose_file import pose_file_bytes
from contextanyone_core.pose.sequence import PoseSequence
from training.personal.poses import poses_of_shot
from training.personal.shot import open_clip

PHONE = [40] * 20 + [30] * 19
"""Milliseconds from one frame of the clip to the next: 40 frames in 1.37 s, at no even rate."""


@pytest.fixture(scope="module")
def shot(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "me.gif"
    pictures = [Image.new("RGB", (128, 96), (5 * number, 90, 200)) for number in range(40)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[*PHONE, 30])
    return open_clip(path)


def gliding(seconds, fps, size=(96, 128)):
    """A body that moves by 20 pixels a second of a canvas 128 wide to the right."""
    height, width = size
    body = np.full((len(seconds), 18, 3), 0.9)
    body[..., 1] = np.linspace(0.1, 0.9, 18) * height
    body[..., 0] = (30 + 20 * np.asarray(seconds)[:, None]) * width / 128
    return PoseSequence(body, width, height, fps)


def given(shot, folder, poses):
    path = folder / "me.safetensors"
    path.write_bytes(pose_file_bytes(poses))
    return poses_of_shot(shot, path, None, drawn=False)


@pytest.mark.parametrize("fps", [12.0, 16.0, 50.0])
def test_poses_at_another_rate_are_those_at_the_clips_times(shot, tmp_path, fps):
    times = np.cumsum([0, *PHONE]) / 1000
    found = given(shot, tmp_path, gliding(np.arange(int(times[-1] * fps) + 2) / fps, fps))
    assert (found.num_frames, found.fps) == (shot.num_frames, shot.fps)
    np.testing.assert_allclose(found.body, gliding(times, fps).body, atol=1e-4)


@pytest.mark.parametrize(("frames", "fits"), [(20, False), (21, True), (22, True), (24, True), (25, False)])
def test_poses_last_as_long_as_the_clip_within_two_frames(shot, tmp_path, frames, fits):
    wanted = r"has \d+ frames at 16 a second, 1\.\d\d s, the clip 40, 1\.37 s; give poses of the whole clip"
    with nullcontext() if fits else pytest.raises(InputError, match=wanted):
        assert given(shot, tmp_path, gliding(np.arange(frames) / 16, 16.0)).num_frames == 40


def test_a_pose_for_each_frame_is_taken_as_it_is_whatever_the_rate(shot, tmp_path):
    one_each = gliding(np.arange(40) / 16, 16.0)
    np.testing.assert_allclose(given(shot, tmp_path, one_each).body, one_each.body, atol=1e-4)
