"""Activation checkpointing: the same numbers, bit for bit, from less memory."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import autocast
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.regions import Regions
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.parts.objective import Draws, EncodedClips, ReferenceDraws, dual_guidance_step
from training.parts.transformer import Settings
from training.parts.transformer_base import TransformerTraining

TINY = ContextAnyoneConfig.tiny()


def gradients(
    recompute: str, bf16: bool, regions: Regions | None = None, keep_text: tuple[bool, ...] = (True, True)
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    transformer = ContextAnyoneTransformer(TINY)
    for parameter in transformer.parameters():  # zero-initialised layers would hide what they should pass on
        torch.nn.init.normal_(parameter, std=0.1)
    settings = Settings(recompute=recompute)
    part = TransformerTraining(settings, transformer)
    latents, still = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 16, 1, 4, 6)
    clips = EncodedClips(latents, torch.ones(2, 1, 3, 4, 6), still, torch.randn(2, 5, 24), latents[:, :, :1], None)
    clips = replace(clips, regions=regions)
    draws = Draws(torch.rand(2), torch.randn_like(latents), list(keep_text), ReferenceDraws(torch.rand(2), still))
    texts = (torch.randn(2, 12, 32), torch.randn(2, 12, 32))
    with autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = dual_guidance_step(part.transformer, settings, clips, draws, texts)
    loss.mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def test_gradients_are_the_same_bit_for_bit():
    plain = gradients("none", bf16=False)
    for kind in ("full", "selective"):
        again = gradients(kind, bf16=False)
        assert again.keys() == plain.keys()
        assert [name for name, gradient in plain.items() if not torch.equal(gradient, again[name])] == []


def test_regions_train_recomputed_too_and_not_where_the_text_is_dropped():
    person = torch.rand((2, 1, 3, 4, 6), generator=torch.Generator().manual_seed(3))
    regions = Regions(person, ((1, 2), (3,)))
    plain, guided = gradients("none", bf16=False), gradients("none", bf16=False, regions=regions)
    name = "blocks.0.cross_attn.v.weight"
    assert not torch.allclose(plain[name], guided[name], atol=1e-5)
    for kind in ("full", "selective"):
        again = gradients(kind, bf16=False, regions=regions)
        assert [one for one, gradient in guided.items() if not torch.equal(gradient, again[one])] == []
    dropped = gradients("none", bf16=False, regions=regions, keep_text=(False, False))
    assert all(torch.equal(gradient, plain[one]) for one, gradient in dropped.items())


def test_under_autocast_a_shared_weights_gradients_are_added_in_float32():
    """Video and reference share weights: a cast that is kept adds both gradients in bf16, new ones do not."""
    exact, plain, full, selective = (
        gradients(kind, bf16) for kind, bf16 in (("none", False), ("none", True), ("full", True), ("selective", True))
    )
    assert all(torch.equal(full[name], selective[name]) for name in full)

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum((found[name] - exact[name]).square().sum().item() for name in exact)

    assert error(full) <= 1.02 * error(plain)


def test_selective_needs_the_fused_kernel():
    with pytest.raises(ValidationError, match="selective needs fused attention"):
        Settings(recompute="selective", explicit_attention=True)


class Executed(TorchDispatchMode):
    """Counts the fused attentions that are really computed, and knows which storages are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = self.backwards = 0
        self._met: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        self.attentions += name == "_scaled_dot_product_flash_attention_for_cpu"
        self.backwards += name == "_scaled_dot_product_flash_attention_for_cpu_backward"
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._met[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        return result

    def alive(self) -> int:
        return sum(size for reference, size in self._met.values() if not reference.expired())


def small_step(recompute: str) -> tuple[int, int, int]:
    """Bytes kept between the passes, attentions of the forward pass, and attentions computed again in the backward."""
    torch.manual_seed(0)
    settings = Settings(recompute=recompute)
    part = TransformerTraining(settings, ContextAnyoneTransformer(TINY))
    latents, still = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 16, 1, 8, 8)
    clips = EncodedClips(latents, torch.ones(1, 1, 3, 8, 8), still, torch.randn(1, 5, 24), latents[:, :, :1], None)
    draws = Draws(torch.rand(1), torch.randn_like(latents), [True], ReferenceDraws(torch.rand(1), still))
    texts = (torch.randn(1, 12, 32), torch.randn(1, 12, 32))
    with Executed() as executed:
        loss = dual_guidance_step(part.transformer, settings, clips, draws, texts)[0].mean()
        kept, forward = executed.alive(), executed.attentions
        loss.backward()
    assert executed.backwards == forward
    return kept, forward, executed.attentions - forward


def test_selective_keeps_more_than_full_and_does_no_attention_twice():
    none, selective, full = (small_step(kind) for kind in ("none", "selective", "full"))
    assert full[0] < selective[0] < none[0]
    of_a_block = 6  # itself, text, CLIP and Emphasize-Attention of the video; itself and text of the reference
    assert none[1] == selective[1] == full[1] == of_a_block * TINY.num_layers
    assert (none[2], selective[2], full[2]) == (0, 0, of_a_block * TINY.num_layers)
