"""The shot that a person is trained on, its masks, and the hull in their place."""

import numpy as np
import pytest

from contextanyone_core.errors import InputError
from contextanyone_core.media.video_io import write_clip
from training.data.world_poses import world_poses
from training.files import write_png
from training.personal.masks import hull, masks_of_shot
from training.personal.shot import open_clip
from training.world import TEST_SEED_START, posed_sample


def test_the_longest_shot_is_used_and_the_others_are_named(tmp_path, caplog):
    red, blue = (
        np.full((count, 64, 64, 3), color, np.uint8) for count, color in ((12, (200, 30, 30)), (30, (30, 30, 200)))
    )
    write_clip(tmp_path / "two.mp4", np.concatenate([red, blue]), {})
    shot = open_clip(tmp_path / "two.mp4")
    assert (shot.total, shot.start, shot.stop) == (42, 12, 42)
    assert "holds 2 shots; the longest is used, frames 12 to 41 of 42" in caplog.text


def test_the_hull_covers_the_person():
    pair = posed_sample(TEST_SEED_START + 4, 9, (128, 128), free=True)
    poses = world_poses(pair.keypoints, (128, 128))
    for body, mask in zip(poses.body, pair.masks, strict=True):
        person, found = mask > 127, hull(body, (128, 128)) > 127
        assert found[person].mean() > 0.95
        assert found.mean() < 0.6
    assert not hull(np.zeros((18, 3)), (32, 48)).any()


class Bright:
    """A segmenter of white figures on black."""

    def segment(self, frames):
        for frame in frames:
            yield frame[..., 0].astype(np.float32) / 255


@pytest.mark.parametrize("between", [0, 150])
def test_several_people_in_the_masks_are_refused(tmp_path, between):
    """Also where they stand so close that the segmenter is not sure of what is between them."""
    for number in range(12):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[10:50, 5:20] = 255
        if number > 3:
            frame[10:40, 40:55] = 255  # a second one, in 8 of 12 frames
            frame[20:30, 20:40] = between
        write_png(tmp_path / f"{number:02d}.png", frame)
    shot = open_clip(tmp_path)
    poses = world_poses(np.zeros((12, 14, 2), np.float32), (64, 64))
    with pytest.raises(InputError, match="shows several people in 8 of 12 frames; crop it to one"):
        list(masks_of_shot(shot, poses, None, Bright()))
    for number in range(4, 8):
        write_png(tmp_path / f"{number:02d}.png", np.zeros((64, 64, 3), np.uint8))
    assert [int(mask.max()) for mask in masks_of_shot(shot, poses, None, Bright())][:5] == [255] * 4 + [0]
