"""The hull of a driving pose: it holds the person, on the latents' grid, by the VAE's groups of frames."""

import numpy as np
import pytest
from pose_cases import LENGTHS, figure, sequence, standing

from contextanyone_core.errors import InputError
from contextanyone_core.media.read_video import open_video
from contextanyone_core.media.video_io import write_clip
from contextanyone_core.pose.drawing import FULL_SIZE, MINIATURE, draw_poses
from contextanyone_core.pose.hull import DILATION, nose_to_neck, person_hull
from contextanyone_core.pose.sequence import SEEN
from training.data.world_poses import world_poses
from training.world import posed_sample


def in_pixels(hull):
    return np.repeat(np.repeat(hull, 8, -2), 8, -1)


def test_the_hull_holds_the_people_of_the_world():
    """Hats, bags and hair are beyond the keypoints; what is beyond the hull too is little."""
    held, areas = [], []
    for seed in range(16):
        pair = posed_sample(seed, num_frames=5)
        hull = person_hull(world_poses(pair.keypoints, (128, 128)), MINIATURE)
        assert hull.shape == (2, 16, 16)
        assert hull.dtype == np.float32
        assert 0 <= hull.min() <= hull.max() <= 1
        person = pair.masks[1:].max(axis=0) / 255.0
        held.append((person * in_pixels(hull[1])).sum() / person.sum())
        areas.append(hull[1].mean() / person.mean())
    assert np.mean(held) > 0.93
    assert min(held) > 0.8
    assert np.mean(areas) < 2.5


def test_it_reaches_as_far_beyond_the_figure_as_said():
    poses = standing()
    reach = DILATION * FULL_SIZE.head * nose_to_neck(poses)
    hull = in_pixels(person_hull(poses)[0])
    body = poses.body[0, :, :2]
    rows, columns = np.flatnonzero((hull > 0.5).any(axis=1)), np.flatnonzero((hull > 0.5).any(axis=0))
    low, high = body.min(axis=0) - reach, body.max(axis=0) + reach
    assert np.allclose([columns[0], rows[0], columns[-1], rows[-1]], [*low, *high], atol=9)
    along = np.linspace(body[4], body[7], 50).round().astype(int)  # between the hands: a hull, no outline
    assert (hull[along[:, 1], along[:, 0]] == 1).all()


def test_frames_are_grouped_as_the_vae_groups_them():
    bodies = [figure(neck=(120.0 + 60 * index, 140.0)) for index in range(9)]
    hull = person_hull(sequence(bodies))
    assert hull.shape == (3, 60, 104)
    each = [person_hull(sequence([body]))[0] for body in bodies]
    for group, frames in zip(hull, (each[:1], each[1:5], each[5:]), strict=True):
        assert np.array_equal(group, np.max(frames, axis=0))


def test_a_frame_without_a_person_has_none_and_the_edge_of_the_picture_cuts_it():
    nobody = np.zeros((18, 3))
    hull = person_hull(sequence([nobody, *[figure()] * 4]))
    assert not hull[0].any()
    assert hull[1].any()
    faint = figure()
    faint[:, 2] = SEEN
    assert not person_hull(sequence([faint])).any()
    outside = person_hull(sequence([figure(neck=(-20.0, 140.0))]))
    assert 0 < outside.mean() < hull[1].mean()


@pytest.mark.parametrize("hidden", [(), (0,), (0, 8), (0, 1), (0, 1, 2, 8)])
def test_the_head_is_known_by_what_is_seen(hidden):
    body = figure()
    whole = nose_to_neck(sequence([body]))
    assert whole == pytest.approx(LENGTHS[12])
    body[list(hidden), 2] = 0
    assert 0.4 * whole < nose_to_neck(sequence([body])) < 2.5 * whole


@pytest.mark.parametrize("style", [FULL_SIZE, MINIATURE])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_watermark_is_not_the_person(tmp_path, style, compressed):
    poses = sequence([np.zeros((18, 3)), *[figure(neck=(200.0 + 20 * index, 150.0)) for index in range(4)]])
    face = np.zeros((5, 70, 3))
    face[1:, :, :2] = poses.body[1:, :1, :2] + np.random.default_rng(0).uniform(-20, 20, (70, 2))
    face[1:, :, 2] = 1
    frames = draw_poses(sequence(poses.body, face=face), style)
    marked = frames.copy()
    marked[:, 455:467, 770:820] = 230
    marked[:, 458:464, 775:790] = 40
    hulls = []
    for name, video in (("plain.mp4", frames), ("marked.mp4", marked)):
        if compressed:
            write_clip(tmp_path / name, video, {})
            video = np.stack(list(open_video(tmp_path / name).frames))
        hulls.append(person_hull(video, style))
    assert not hulls[1][0].any()
    assert np.abs(hulls[0] - hulls[1]).max() <= (0.1 if compressed else 0)


def test_a_drawn_video_has_nearly_the_hull_of_its_keypoints():
    poses = sequence([figure(neck=(200.0 + 40 * index, 150.0)) for index in range(5)])
    drawn, wanted = person_hull(draw_poses(poses)), person_hull(poses)
    assert drawn.shape == wanted.shape
    assert np.abs(drawn - wanted).mean() < 0.1 * wanted.mean() + 0.01
    assert not person_hull(np.zeros((1, 64, 64, 3), np.uint8)).any()
    with pytest.raises(InputError, match="no plain background"):
        person_hull(np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8))
