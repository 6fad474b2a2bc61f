"""Muon: orthogonal updates, one state with AdamW, kernels of any dimension; the groups that the parts make."""

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
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert values.max() < 1.35
        assert values.median() > 0.6


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


def test_the_update_has_the_size_of_adamws():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 32))
    optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=1e-2, weight_decay=0.0)
    weight.grad = torch.randn(64, 32)
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
