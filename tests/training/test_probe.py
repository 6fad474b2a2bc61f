"""The probe: its batches, its losses, its file, and that it can learn; the shipped one reads unseen characters."""

import numpy as np
import pytest
import torch

from contextanyone_core.errors import CheckpointError, ShapeError
from contextanyone_core.generation.pipeline import MINIATURE
from contextanyone_core.weights.checkpoint import save_safetensors
from training.evaluation.probe import FRAME_HEADS, Probe, ProbeConfig, load_probe, prepare, read_clips
from training.evaluation.probe_check import check_probe
from training.parts.base import PartContext
from training.parts.probe import ProbePart, Settings
from training.parts.probe_data import draw_labelled, spoil
from training.world import ACTIONS, ATTRIBUTES

SMALL = Settings(stills=3, clips=2, clip_frames=3, side=32, channels=(8, 8, 16, 16))
SHIPPED = MINIATURE / "probe.safetensors"


@pytest.fixture
def part():
    torch.manual_seed(0)
    return ProbePart(SMALL, PartContext(5, torch.device("cpu")))


def test_heads_are_the_attributes_in_order_then_place_and_light():
    assert list(FRAME_HEADS) == [*ATTRIBUTES, "place", "light"]


def test_a_batch_is_a_function_of_seed_and_step(part):
    one, again, other = part.batch(3), part.batch(3), part.batch(4)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["frames"], other["frames"])
    assert one["frames"].shape == (9, 32, 32, 3)
    assert one["points"].shape == (9, 14, 2)
    assert one["labels"].shape == (9, 10)
    assert one["actions"].shape == (2,)


def test_the_loss_has_one_value_per_frame_and_falls(part):
    batch = part.batch(0)
    optimizer = torch.optim.AdamW(part.probe.parameters(), 3e-3)
    losses = []
    for step in range(12):
        loss, metrics = part.loss(batch, step, torch.Generator())
        assert loss.shape == (9,)
        assert set(metrics) == {*FRAME_HEADS, "joints", "action"}
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.8 * losses[0]


def test_spoiling_keeps_labels_and_moves_the_joints_with_the_picture():
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(20):
        item = draw_labelled(rng, 2, 48)
        spoilt = spoil(item, rng)
        assert spoilt.frames.shape == item.frames.shape
        assert spoilt.frames.dtype == np.uint8
        assert (spoilt.character, spoilt.scene) == (item.character, item.scene)
        shift = (item.points - spoilt.points)[0, 0] * 24
        assert np.abs(shift - shift.round()).max() < 1e-3
        moved += bool(np.abs(shift).max() > 0.5)
    assert 5 < moved < 20


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (48, 96), (96, 40)])
def test_frames_of_any_size_can_be_read(size):
    probe = Probe(ProbeConfig(32, (8, 8, 8, 8), 8)).eval()
    clips = torch.randint(0, 256, (2, 5, *size, 3), dtype=torch.uint8)
    reading = read_clips(probe, clips, batch_size=3)
    assert all(reading.frames[name].shape == (2, 5) for name in FRAME_HEADS)
    assert reading.points.shape == (2, 5, 14, 2)
    assert reading.action.shape == (2,)
    assert reading.action.max() < len(ACTIONS)


def test_clips_are_read_where_the_probe_is():
    """On the meta device, whose operations refuse tensors of another, but whose results nobody can fetch."""
    probe, seen = Probe(ProbeConfig(32, (8, 8, 8, 8), 8)).to("meta"), []
    probe.action.classify.register_forward_hook(lambda module, inputs, output: seen.append(output.device.type))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        read_clips(probe, torch.zeros(2, 3, 32, 32, 3, dtype=torch.uint8))
    assert seen == ["meta"]


def test_a_single_frame_has_no_action():
    probe = Probe(ProbeConfig(32, (8, 8, 8, 8), 8)).eval()
    assert read_clips(probe, torch.zeros(2, 1, 32, 32, 3, dtype=torch.uint8)).action is None


def test_a_wide_picture_is_padded_not_squeezed():
    frames = torch.full((1, 16, 32, 3), 255, dtype=torch.uint8)
    prepared = prepare(frames, 32)
    assert prepared.shape == (1, 3, 32, 32)
    assert torch.equal(prepared[..., 8:24, :], torch.ones(1, 3, 16, 32))
    assert not prepared[..., :8, :].any()


def test_frames_that_are_no_pictures_are_refused():
    with pytest.raises(ShapeError, match="uint8"):
        prepare(torch.zeros(1, 16, 16, 3))


def test_the_file_gives_the_same_network_back(part, tmp_path):
    part.export(tmp_path, {"seed": 5, "steps": 0})
    loaded = load_probe(tmp_path / "probe.safetensors")
    assert loaded.config == part.probe.config
    for name, value in part.probe.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    warm = ProbePart(SMALL, PartContext(0, torch.device("cpu"), tmp_path / "probe.safetensors"))
    assert all(parameter.requires_grad for parameter in warm.probe.parameters())


def test_other_files_are_refused(tmp_path):
    save_safetensors(tmp_path / "vae.safetensors", {"a": torch.zeros(1)}, kind="wan-vae", config={})
    with pytest.raises(CheckpointError, match="wan-vae"):
        load_probe(tmp_path / "vae.safetensors")
    probe = Probe(ProbeConfig(32, (8, 8, 8, 8), 8))
    config = {"side": 32, "channels": [8, 8, 8, 16], "action_width": 8}
    save_safetensors(tmp_path / "probe.safetensors", probe.state_dict(), kind="probe", config=config)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_probe(tmp_path / "probe.safetensors")


def test_the_sample_is_a_picture(part, tmp_path):
    part.probe.eval()
    part.sample(0, tmp_path)
    assert (tmp_path / "probe.png").stat().st_size > 10_000


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the probe is not trained yet")
def test_the_shipped_probe_reads_characters_that_it_has_never_seen():
    assert SHIPPED.stat().st_size <= 2_000_000
    numbers = check_probe(load_probe(SHIPPED), seed=99, frames=510, size=128)
    assert numbers["accuracy"] >= 0.97
    assert numbers["scene"]["action"] >= 0.9
    assert numbers["by_light"]["night"] >= 0.95
