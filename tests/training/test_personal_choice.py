"""Which pictures and clips of a shot a person is trained on."""

import numpy as np
import pytest

from training.data.buckets import BucketSettings
from training.data.world_poses import world_poses
from training.personal.choice import choose_clips, choose_stills
from training.world import TEST_SEED_START, posed_sample


def test_pictures_are_of_different_poses_and_only_usable_frames():
    keypoints = posed_sample(TEST_SEED_START + 4, 30, (128, 128), free=True).keypoints
    standing = np.concatenate([np.repeat(keypoints[:1], 60, axis=0), keypoints])
    poses = world_poses(standing, (128, 128))
    usable = np.ones(90, bool)
    usable[70] = False
    chosen = choose_stills(poses, usable)
    assert len(chosen) == 29
    assert 70 not in chosen
    assert sum(index < 61 for index in chosen) == 1  # of sixty equal frames one is enough
    few = choose_stills(poses, np.arange(90) < 5)
    assert few == [0, 1, 2, 3, 4]
    walk = standing * 0.5 + np.stack([np.linspace(0, 60, 90), np.zeros(90)], axis=1)[:, None]
    walked = choose_stills(world_poses(walk, (128, 128)), usable)
    assert (walked[0] < 61, walked[1:]) == (True, chosen[1:])  # a place, or a smaller picture, is no pose


@pytest.mark.parametrize(
    ("frames", "fps", "at_16", "length", "count"),
    [(9, 16.0, 9, 9, 1), (40, 16.0, 40, 33, 1), (100, 16.0, 100, 33, 5), (150, 30.0, 80, 61, 3)],
)
def test_clips_are_the_longest_that_fit_and_evenly_spread(frames, fps, at_16, length, count):
    found = choose_clips(frames, fps, at_16, BucketSettings(frames=(1, 9, 17, 33)))
    assert {size for _, size in found} == {length}
    assert len(found) == count
    assert found[0][0] == 0
    assert found[-1][0] + length <= frames
