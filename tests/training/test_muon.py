"""Muon: orthogonal updates, one state with AdamW, kernels of any dimension."""

import torch
from torch import nn
from torch.nn import Conv2d, Linear

from training.muon import MuonAdamW, orthogonal


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
