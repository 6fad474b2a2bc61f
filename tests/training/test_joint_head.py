"""The head that asks a middle block where the driving pose's joints are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from on_card import OnDevice

from contextanyone_core.errors import InputError
from contextanyone_core.weights.checkpoint import load_transformer
from training.data import pool as pool_module
from training.parts.base import PartContext
from training.parts.joint_head import JointHead
from training.parts.transformer import Settings, TransformerPart
from training.world import posed_sample


@pytest.fixture
def make_part(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "_SHARD", 2)

    def make(**changes):
        torch.manual_seed(0)
        small = {"num_frames": 5, "size": 32, "batch": 2, "pairs": 4, "sample_steps": 1, "condition": True}
        settings = Settings(weights=tiny_folder, pools=tmp_path / "pools", **small | changes)
        init = tiny_folder / "transformer.safetensors"
        return TransformerPart(settings, PartContext(seed=5, device=torch.device("cpu"), init_from=init))

    return make


def _batch(part, step=2):
    """A batch with captions that fit the tiny text encoder."""
    batch = part.batch(step)
    later = ["The same person is waving."] * len(batch["first"])
    return batch | {"first": ["A woman."] * len(later), "later": later, "later_posed": later}


def _drawing(part, monkeypatch, shown):
    """The part's draws with the poses of some samples alone."""
    own = part.draws

    def draws(*arguments):
        drawn = own(*arguments)
        condition = replace(drawn.condition, keep_pose=torch.tensor(shown), with_pose=tuple(shown))
        return replace(drawn, condition=condition)

    monkeypatch.setattr(part, "draws", draws)


def test_joints_of_a_batch_are_those_of_its_renderings(make_part):
    part = make_part(joint_weight=0.5)
    chosen = [3, 0]
    joints = part._joints(np.array(chosen))
    rendered = [posed_sample(part._key.world_seed(index), 5, (32, 32)).keypoints for index in chosen]
    assert joints.shape == (2, 5, 14, 2)
    torch.testing.assert_close(32 * joints, torch.from_numpy(np.stack(rendered)), atol=1e-4, rtol=0)
    assert part.batch(2)["joints"].shape == (2, 5, 14, 2)
    assert "joints" not in make_part().batch(2)


@pytest.mark.parametrize("frames", [1, 5])
def test_the_loss_is_lowest_where_the_map_peaks_at_the_joint(frames):
    """The maps of a head without a nonlinearity, given as its bias: one token, four frames of four by four cells."""
    head = JointHead(8)
    grid = (1 + (frames - 1) // 4, 1, 1)
    torch.nn.init.zeros_(head.maps.weight)
    tokens = torch.zeros(1, grid[0], 8)
    peak = torch.full((4, 14, 4, 4), -4.0)
    peak[:, :, 2, 1] = 4.0  # row 2, column 1
    head.maps.bias.data = peak.flatten()
    there = torch.tensor([1.5 / 4, 2.5 / 4]).expand(1, frames, 14, 2)
    near, placed = head(tokens, grid, there)
    far, missed = head(tokens, grid, there.flip(-1) + 0.2)
    assert near.shape == placed.shape == (1,)
    assert (placed.item(), missed.item()) == (1.0, 0.0)
    assert near < far


def test_a_joint_outside_the_picture_does_not_count():
    torch.manual_seed(1)
    head, tokens = JointHead(8), torch.randn(1, 4, 8)
    joints = torch.rand(1, 1, 14, 2)
    moved = joints.clone()
    moved[:, :, 3] = torch.tensor([1.4, 0.5])
    other = joints.clone()
    other[:, :, 3] = torch.tensor([0.5, -7.0])
    assert torch.equal(head(tokens, (1, 2, 2), moved)[0], head(tokens, (1, 2, 2), other)[0])
    assert head(tokens, (1, 2, 2), torch.full_like(joints, 2.0))[0].item() == 0.0


def test_joints_can_be_learned_from_tokens():
    torch.manual_seed(2)
    head, tokens, joints = JointHead(16), torch.randn(4, 2 * 2 * 2, 16), torch.rand(4, 5, 14, 2)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(150):
        entropy, placed = head(tokens, (2, 2, 2), joints)
        optimizer.zero_grad()
        entropy.mean().backward()
        optimizer.step()
    assert placed.mean() > 0.95


def test_only_samples_with_a_pose_are_asked(make_part, monkeypatch):
    asked, plain = make_part(joint_weight=0.5), make_part()
    batch = _batch(asked)
    for part in (asked, plain):
        _drawing(part, monkeypatch, [False, True])
    loss, metrics = asked.loss(batch, 2, torch.Generator().manual_seed(1))
    without, _ = plain.loss(batch, 2, torch.Generator().manual_seed(1))
    expected = without.detach() + 0.5 * torch.stack([torch.zeros(()), metrics["joints"][0]])
    torch.testing.assert_close(loss.detach(), expected)
    assert metrics["placed"].shape == (1,)

    OnDevice.reads.clear()
    asked.loss(batch | {"joints": batch["joints"].as_subclass(OnDevice)}, 2, torch.Generator().manual_seed(1))
    assert OnDevice.reads == []

    (loss - without.detach()).sum().backward()
    head = asked.modules()["attribute_heads"]
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())

    _drawing(asked, monkeypatch, [False, False])
    assert "joints" not in asked.loss(batch, 2, torch.Generator().manual_seed(1))[1]


def test_the_head_is_not_exported(make_part, tmp_path):
    part = make_part(joint_weight=0.5)
    with torch.no_grad():
        part.export(tmp_path, {"steps": 2})
    loaded = load_transformer(tmp_path / "transformer.safetensors")
    assert loaded.state_dict().keys() == part.transformer.state_dict().keys()


def test_a_network_without_pose_channels_is_refused(make_part):
    with pytest.raises(InputError, match=r"part\.joint_weight needs condition channels"):
        make_part(joint_weight=0.5, condition=False)
