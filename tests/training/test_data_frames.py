"""Resampling, placement and masks: which frames and which pixels a clip uses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextanyone_core.media.video_io import FPS
from training.data.frames import Placement, latent_masks, resample, to_images
from training.data.video_windows import frames_available


def times(count, fps):
    return [index / fps for index in range(count)]


def test_at_16_a_second_every_frame_is_itself():
    assert frames_available(times(81, 16)) == 81
    assert resample(times(81, 16), 81) == list(range(81))


@pytest.mark.parametrize(("fps", "count", "available"), [(32, 33, 17), (8, 9, 17), (30, 31, 17), (24, 25, 17)])
def test_a_second_holds_17_moments_at_any_rate(fps, count, available):
    assert frames_available(times(count, fps)) == available
    assert resample(times(count, fps), available)[-1] == count - 1
    assert resample(times(count, fps), 2)[1] == round(fps / FPS - 1e-9)


@given(st.floats(4, 120), st.integers(2, 200), st.integers(0, 50))
def test_the_nearest_frame_is_taken_never_one_outside(fps, count, start):
    source = [(start + index) / fps for index in range(count)]
    chosen = resample(source, frames_available(source))
    assert chosen == sorted(chosen)
    for moment, index in enumerate(chosen):
        wanted = source[0] + moment / FPS
        assert abs(source[index] - wanted) <= min(abs(time - wanted) for time in source) + 1e-5


def test_a_single_frame_is_a_clip_of_one():
    assert frames_available([0.0]) == 1
    assert resample([3.0], 1) == [0]


def test_a_frame_covers_its_bucket_from_the_middle():
    frames = torch.zeros(2, 3, 40, 100, dtype=torch.uint8)
    frames[:, :, :, 30:70] = 200
    placement = Placement((0, 0, 100, 40), (32, 32))
    placed = placement.apply(frames)
    assert placed.shape == (2, 3, 32, 32)
    assert placed.mean() == pytest.approx(200, abs=1)
    assert placement.scale == pytest.approx(0.8)
    assert placement.kept == pytest.approx(0.4)
    images = to_images(placed)
    assert images.shape == (1, 3, 2, 32, 32)
    assert -1 <= images.min() <= images.max() <= 1


def test_a_fitting_frame_is_not_touched():
    frames = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    assert torch.equal(Placement((0, 0, 48, 32), (32, 48)).apply(frames), frames.float())
    cut = Placement((8, 4, 40, 20), (16, 32)).apply(frames)
    assert torch.equal(cut, frames[:, :, 4:20, 8:40].float())


def test_points_move_with_the_pixels():
    frames = torch.zeros(1, 1, 60, 120, dtype=torch.uint8)
    frames[0, 0, 28:32, 68:72] = 255
    placement = Placement((20, 0, 120, 60), (32, 32))
    placed = placement.apply(frames)[0, 0]
    row, column = np.unravel_index(int(placed.argmax()), (32, 32))
    moved = placement.move(np.array([[[70.0, 30.0, 0.5]]], np.float32))
    assert moved[0, 0, :2] == pytest.approx([column + 0.5, row + 0.5], abs=1)
    assert moved[0, 0, 2] == 0.5


def test_latent_masks_follow_the_causal_groups_of_frames():
    masks = torch.zeros(9, 16, 16, dtype=torch.uint8)
    masks[1, :8, :8] = 255  # frame 1 belongs to latent 1, not to latent 0
    masks[8, 8:, 8:] = 255
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 1, 0, 0] = expected[0, 2, 1, 1] = 1
    assert torch.equal(latent_masks(masks), expected)
