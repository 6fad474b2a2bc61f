"""The example poses of the nodes are what training.world.example_poses makes of the world's motions."""

from pathlib import Path

import numpy as np
import pytest

from contextanyone_core.pose.reading import PoseSource, read_poses
from training.world.example_poses import FOLDER, MOTIONS, example_poses


@pytest.mark.parametrize("name", sorted(MOTIONS))
def test_the_examples_are_the_worlds_motions(name):
    read = read_poses(FOLDER / f"{name}.json", PoseSource())
    made = example_poses(name)
    assert (read.num_frames, read.width, read.height, read.fps) == (81, 512, 512, 16)
    assert np.abs(read.body - made.body).max() < 1e-3
    assert np.ptp(read.body[:, :, :2], axis=0).max() > 50, "it moves"
    inside = read.body[..., :2][read.body[..., 2] > 0]
    assert inside.min() > 0
    assert inside.max() < 512


def test_no_other_examples():
    assert {path.stem for path in FOLDER.glob("*")} == set(MOTIONS)
    assert Path(__file__).parents[2] / "assets" / "poses" == FOLDER
