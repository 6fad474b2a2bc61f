"""Poses given to `personalize.py`: at another rate than the clip's, and on a picture of another size."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.pose.pose_file import pose_file_bytes
from contextanyone_core.pose.sequence import PoseSequence
from training.files import write_png
from training.personal.poses import poses_of_shot
from training.personal.shot import open_clip
from training.world import TEST_SEED_START, posed_sample

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


@pytest.mark.parametrize("size", [(48, 64), (720, 960), (36, 48), (540, 721)])
def test_poses_on_a_smaller_or_larger_picture_of_the_clip_are_scaled(shot, tmp_path, size):
    times = np.cumsum([0, *PHONE]) / 1000
    found = given(shot, tmp_path, gliding(times, shot.fps, size))
    assert (found.width, found.height) == (128, 96)
    np.testing.assert_allclose(found.body, gliding(times, shot.fps).body, atol=0.2)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_poses_on_another_picture_are_named_with_both_sizes(shot, tmp_path, ending):
    poses, path = gliding(np.arange(40) / 16, 16.0, (512, 512)), tmp_path / f"me.{ending}"
    path.write_bytes(pose_file_bytes(poses) if ending == "safetensors" else json.dumps(to_json(poses)).encode())
    with pytest.raises(InputError, match="the poses lie on 512 x 512, the clip is 128 x 96 pixels; give"):
        poses_of_shot(shot, path, None, drawn=False)


def test_poses_that_state_no_picture_lie_on_the_clip(shot, tmp_path):
    body = gliding(np.arange(40) / 16, 16.0)
    frames = [{"people": frame["people"]} for frame in to_json(body)]
    path = tmp_path / "me.json"
    path.write_text(json.dumps(frames))
    np.testing.assert_allclose(poses_of_shot(shot, path, None, drawn=False).body, body.body, atol=1e-4)


def pictures(folder, frames):
    folder.mkdir()
    for number, frame in enumerate(frames):
        write_png(folder / f"{number:02d}.png", frame)
    return open_clip(folder)


def test_frames_without_a_drawn_person_show_nobody(tmp_path):
    """The pose reader has a place for each joint in every picture; it is no pose where it is not sure of them."""
    pair = posed_sample(TEST_SEED_START + 4, 9, (128, 128), free=True)
    frames = pair.video.copy()
    frames[3][pair.masks[3] > 127] = 90
    frames[6] = np.random.default_rng(0).integers(0, 256, frames[6].shape, np.uint8)
    found = poses_of_shot(pictures(tmp_path / "some", frames), None, None, drawn=True)
    assert (found.body[..., 2] > 0).any(axis=1).tolist() == [True] * 3 + [False] + [True] * 2 + [False] + [True] * 2
    with pytest.raises(InputError, match=r"shows nobody .* knows drawn people of its own world, one alone"):
        poses_of_shot(pictures(tmp_path / "none", np.full((9, 128, 128, 3), 90, np.uint8)), None, None, drawn=True)


@pytest.mark.parametrize(("one", "other", "aside"), [(4, 40, 35), (5, 41, 35), (6, 42, 45)])
def test_several_drawn_people_are_refused(tmp_path, one, other, aside):
    """The pose reader, which knows one person, finds some joints of each."""
    first, second = (posed_sample(TEST_SEED_START + seed, 9, (128, 128), free=True) for seed in (one, other))
    beside, frames = np.roll(second.masks, aside, axis=2) > 127, first.video.copy()
    beside[:, :, :aside] = False
    frames[beside] = np.roll(second.video, aside, axis=2)[beside]
    with pytest.raises(InputError, match="shows several people, or none of the miniature's world"):
        poses_of_shot(pictures(tmp_path / "two", frames), None, None, drawn=True)
    alone = poses_of_shot(pictures(tmp_path / "one", first.video), None, None, drawn=True)
    assert (alone.body[..., 2] > 0).any(axis=1).all()
