"""The pose reader: positions out of maps, its file, and the part that trains it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contextanyone_core.errors import CheckpointError
from contextanyone_core.generation.pipeline import MINIATURE
from training.evaluation.pose_reader import (
    STRIDE,
    PoseReader,
    PoseReaderConfig,
    load_pose_reader,
    positions,
    read_joints,
    save_pose_reader,
)
from training.evaluation.probe import Probe, prepare, save_probe
from training.parts.base import PartContext
from training.parts.pose_reader import PoseReaderPart, Settings, _targets
from training.world import TEST_SEED_START, posed_sample, sample

SMALL = PoseReaderConfig(64, (8, 8, 8, 8))


@given(st.floats(12, 116), st.floats(12, 116))
@settings(max_examples=40, deadline=None)
def test_a_gaussian_is_read_where_it_stands_and_a_second_guess_does_not_pull(x, y):
    wanted = torch.tensor([[[x, y]]])
    maps = _targets(wanted, torch.Size((32, 32)))
    assert (positions(maps.log()) - wanted).norm() < 0.7
    far = _targets((wanted - 12 + 52) % 104 + 12, torch.Size((32, 32)))  # not at the edge, which would sharpen it
    assert (positions((maps + 0.4 * far).log()) - wanted).norm() < 1.5


def test_joints_come_in_the_clips_own_pixels():
    torch.manual_seed(0)
    reader = PoseReader(SMALL).eval()
    small = torch.randint(0, 255, (1, 2, 64, 64, 3), dtype=torch.uint8)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    read = read_joints(reader, small)
    assert read.shape == (1, 2, 14, 2)
    assert read.min() >= 0
    assert read.max() <= 64
    seen = positions(reader(prepare(large[0], 64)))
    assert torch.allclose(read_joints(reader, large)[0], 2 * seen, atol=1e-3)
    assert torch.allclose(read_joints(reader, small.expand(2, -1, -1, -1, -1), batch_size=3)[1], read[0], atol=1e-3)


def test_the_file_gives_the_same_reader_and_another_kind_is_refused(tmp_path):
    torch.manual_seed(0)
    reader = PoseReader(SMALL).eval()
    save_pose_reader(reader, tmp_path / "a.safetensors")
    loaded = load_pose_reader(tmp_path / "a.safetensors")
    frames = torch.randn(1, 3, 64, 64)
    assert torch.allclose(loaded(frames), reader(frames), atol=0.05)
    assert loaded.config == SMALL
    save_probe(Probe(), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="pose-reader"):
        load_pose_reader(tmp_path / "b.safetensors")


def test_the_reader_is_small():
    assert sum(parameter.numel() for parameter in PoseReader().parameters()) <= 500_000


def test_the_part_learns_and_its_batches_are_fixed_by_seed_and_step():
    torch.manual_seed(0)
    part = PoseReaderPart(Settings(frames=6, side=64, channels=(8, 16, 16, 16)), PartContext(0, torch.device("cpu")))
    one, two = part.batch(3), part.batch(3)
    assert torch.equal(one["frames"], two["frames"])
    assert not torch.equal(one["frames"], part.batch(4)["frames"])
    optimizer = torch.optim.Adam(part.reader.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss, metrics = part.loss(one, 0, torch.Generator())
        assert loss.shape == metrics["pixels"].shape == (6,)
        losses.append(loss.mean().item())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert STRIDE * 16 == 64


def test_samples_and_export(tmp_path):
    part = PoseReaderPart(Settings(frames=2, side=64, channels=(8, 8, 8, 8)), PartContext(0, torch.device("cpu")))
    part.sample(0, tmp_path)
    part.export(tmp_path, {"steps": 1})
    assert (tmp_path / "pose_reader.png").is_file()
    assert load_pose_reader(tmp_path / "pose_reader.safetensors").config.side == 64


def test_the_shipped_reader_finds_the_joints_of_renderings():
    """At most 1.2 pixels off on average, and 98 percent within 4, on test characters and motions of every kind."""
    reader = load_pose_reader(MINIATURE / "pose_reader.safetensors")
    assert sum(parameter.numel() for parameter in reader.parameters()) <= 500_000
    seeds = range(TEST_SEED_START * 7, TEST_SEED_START * 7 + 4)
    pairs = [sample(seed, 5) for seed in seeds]
    pairs += [posed_sample(seed, 5, free=True, held_out=held_out) for seed in seeds for held_out in (False, True)]
    found = read_joints(reader, torch.from_numpy(np.stack([pair.video for pair in pairs]))).numpy()
    distance = np.linalg.norm(found - np.stack([pair.keypoints for pair in pairs]), axis=-1)
    assert distance.mean() <= 1.2
    assert (distance <= 4).mean() >= 0.98
