"""Muon: orthogonal updates, one state with AdamW, kernels of any dimension; the groups that the parts make."""

import pytest
import torch
from torch import nn
from torch.nn import Conv2d, Linear

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.vae import build_vae, mini_vae_config
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.muon import MuonAdamW, orthogonal
from training.parts.base import default_groups


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((8, 24), (24, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, *shape)).float())
        assert values.max() < 1.35
        assert (values.median(-1).values > 0.6).all()


def test_stacked_matrices_are_the_newton_schulz_iteration_of_each():
    torch.manual_seed(0)
    a, b, c = 3.4445, -4.7750, 2.0315
    for shape in ((8, 24), (24, 8), (16, 16)):
        stack = torch.randn(4, *shape) * torch.tensor([0.01, 1, 3, 100])[:, None, None]
        found = orthogonal(stack).double()
        for matrix, near in zip(stack.double(), found, strict=True):
            x = matrix / matrix.norm()
            for _ in range(5):
                x = a * x + b * x @ x.mT @ x + c * x @ x.mT @ x @ x.mT @ x
            assert torch.allclose(near, x, atol=0.04)  # rounded to bf16 in each iteration


def test_a_parameter_is_updated_as_if_it_were_alone(monkeypatch):
    shapes = [(16, 8), (8, 16), (16, 8), (6, 4, 3, 3), (16, 8), (16, 2, 2, 2), (5, 40), (16, 8)]
    for at_once in (1, 300, 1 << 19):
        monkeypatch.setattr("training.muon._STACKED", at_once)
        torch.manual_seed(0)
        together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
        parts = [together, *([parameter] for parameter in alone)]
        optimizers = [MuonAdamW([{"params": part, "muon": True}], lr=1e-2) for part in parts]
        for step in range(3):
            for one, other in zip(together, alone, strict=True):
                without = step == 1 and one.ndim == 4
                one.grad = other.grad = None if without else torch.randn(one.shape)
            for optimizer in optimizers:
                optimizer.step()
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(one, other, atol=3e-4)  # of steps of about 0.002; bf16's rounding


def test_kernels_and_vectors_train_together():
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), Linear(8 * 36, 4))
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim == 1]
    optimizer = MuonAdamW([{"params": matrices, "muon": True}, {"params": vectors, "muon": False}], lr=1e-2)
    x, y = torch.randn(16, 3, 8, 8), torch.randn(16, 4)
    losses = []
    for _ in range(30):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert {key for p in matrices for key in optimizer.state[p]} == {"momentum"}
    assert {key for p in vectors for key in optimizer.state[p]} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("shape", [(64, 32), (64, 4), (4, 64)])
def test_the_update_has_the_size_of_adamws(shape):
    """0.2 whatever the shape, for singular values of 0.7 to 1.2; the shorter side in the scale gives 0.05 to 0.14."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=1e-2, weight_decay=0.0)
    weight.grad = torch.randn(shape)
    optimizer.step()
    assert 0.1 < weight.detach().square().mean().sqrt() / 1e-2 < 0.3


def test_gains_biases_and_modulations_have_no_weight_decay():
    """Also those that have more dimensions than one: the gains of the VAE's norms, the blocks' modulation."""
    vae = build_vae(mini_vae_config() | {"base_dim": 4})
    modules = {"vae": vae, "transformer": ContextAnyoneTransformer(ContextAnyoneConfig.tiny())}
    left_out = [group for group in default_groups(modules) if group.get("weight_decay") == 0.0]
    found = {id(parameter) for group in left_out for parameter in group["params"]}
    seen = set()
    for module in modules.values():
        for name, parameter in module.named_parameters():
            kind = name.rpartition(".")[2]
            assert (id(parameter) in found) is (parameter.ndim < 2 or kind in ("gamma", "modulation")), name
            seen.add((kind, min(parameter.ndim, 2)))
    assert {("gamma", 2), ("modulation", 2), ("weight", 1), ("bias", 1)} <= seen
