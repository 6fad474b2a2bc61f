"""Compiled training: few variants for each shape, and activation checkpointing that the compiler sees."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.parts.objective import Draws, EncodedClips, ReferenceDraws, loss_terms
from training.parts.transformer import Settings
from training.parts.transformer_base import TransformerTraining

TINY = ContextAnyoneConfig.tiny()
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu.default"


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def step(part: TransformerTraining, frames: int, seed: int, *, references: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    latents, still = torch.randn(1, 16, frames, 4, 4), torch.randn(1, 16, 1, 4, 4)
    clips = EncodedClips(latents, torch.ones(1, 1, frames, 4, 4), still, torch.randn(1, 5, 24), latents[:, :, :1], None)
    used = ReferenceDraws(torch.rand(1), torch.randn_like(still)) if references else None
    draws = Draws(torch.rand(1), torch.randn_like(latents), [True], used)
    texts = (torch.randn(1, TINY.text_len, TINY.text_dim), torch.randn(1, TINY.text_len, TINY.text_dim))
    part.transformer.zero_grad()
    loss_terms(part.transformer, part.settings, clips, draws, texts).total.mean().backward()
    return {name: p.grad.clone() for name, p in part.transformer.named_parameters() if p.grad is not None}


def make(**settings: Any) -> TransformerTraining:
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return TransformerTraining(Settings(**settings), network)


def test_a_shape_compiles_twice_whatever_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With references and without; all blocks share them, and other values of the same shapes add none."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    part, compiled = make(compile=True), []
    for seed, references in enumerate([True, False, True, False]):
        step(part, 1, seed, references=references)
        compiled.append(counter.frame_count)
    assert compiled == [1, 2, 2, 2]


def test_selective_compiled_computes_no_attention_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Counter[str]] = []

    def counted(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(Counter(str(node.target).removeprefix("aten.") for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=counted, bw_compiler=counted, partition_fn=min_cut_rematerialization_partition)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = step(make(compile=True, recompute="selective"), 3, 1, references=True)
    forward, backward = found
    assert forward[_ATTENTION] == 6
    assert backward[_ATTENTION] == 0
    assert backward["mm.default"] + backward["addmm.default"] > 2 * (forward["mm.default"] + forward["addmm.default"])
    plain = step(make(recompute="selective"), 3, 1, references=True)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-5, rtol=1e-4)
