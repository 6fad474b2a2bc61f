"""The ways of other papers among the cells: RefAlign's loss and VACE's context blocks."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.sampling.reference_modes import TemporalConcatenation
from evaluation.ablation.alignment import ReferenceAlignment, alignment_loss, at_places, centred
from evaluation.ablation.fingerprint import fingerprint
from evaluation.ablation.part import Settings
from evaluation.ablation.vace import VaceTransformer, load_context, save_context, with_place
from evaluation.ablation.variants import as_variant
from training.parts.objective import EncodedClips


@pytest.fixture
def network() -> ContextAnyoneTransformer:
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return network


@pytest.fixture
def plain() -> ContextAnyoneTransformer:
    """A network without a reference stream's own parts, as Phantom's and VACE's."""
    from dataclasses import replace

    torch.manual_seed(0)
    network = ContextAnyoneTransformer(replace(ContextAnyoneConfig.tiny(), emphasize=False, image_dim=None))
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return network.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1)


def test_the_alignment_loss_by_its_formula():
    tokens, teacher = unit(3, 4, 6), unit(3, 4, 6, seed=1)
    expected = []
    for a in range(3):
        same = np.mean([max(0.0, 1 - float(tokens[a, i] @ teacher[a, i])) for i in range(4)])
        pairs = [(i, b, j) for i in range(4) for b in range(3) for j in range(4) if b != a]
        others = np.mean([max(0.0, 1 - (1 - float(tokens[a, i] @ teacher[b, j]))) for i, b, j in pairs])
        expected.append(same + others)
    assert alignment_loss(tokens, teacher).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_alignment_loss_knows_the_right_subject():
    teacher = torch.eye(3)[:, None].expand(3, 4, 3).contiguous()  # each subject's tokens are its own direction
    assert alignment_loss(teacher, teacher).tolist() == [0, 0, 0]
    wrong = alignment_loss(teacher.roll(1, 0), teacher)
    assert wrong.tolist() == pytest.approx([1.5] * 3)  # 1 of its own, and one of the two others at 1


def test_teacher_tokens_are_brought_to_the_networks_places():
    ramp = torch.arange(4.0).repeat(4, 1)  # rises along the rows
    tokens = torch.cat([torch.full((1, 1, 2), 99.0), ramp.flatten()[None, :, None].expand(1, 16, 2)], dim=1)
    assert torch.equal(at_places(tokens, 16)[0, :, 0], ramp.flatten())  # the class's token is left out
    placed = at_places(tokens, 64)[0, :, 0].view(8, 8)
    assert torch.allclose(placed[0], placed[7])
    assert bool((placed[:, 1:] >= placed[:, :-1]).all())
    assert centred(tokens).mean((0, 1)).abs().max() < 1e-5


def test_the_alignment_trains_the_reference_stream_and_counts_by_the_noise(network):
    config = network.config
    alignment = ReferenceAlignment(network, config.image_dim or 1)
    text = draw(2, config.text_len, config.text_dim)
    tokens = draw(2, 5, config.image_dim or 1, seed=2)
    references = ReferenceInputs([draw(2, 16, 1, 4, 4)], text, [tokens])

    def losses(sigma: float) -> torch.Tensor:
        network(draw(2, 16, 2, 4, 4, seed=1), torch.tensor([700.0, 300.0]), text, references=references)
        return alignment(tokens, torch.full((2,), sigma))

    low, high = losses(0.5), losses(1.0)
    assert torch.allclose(low, high / 8)
    high.mean().backward()
    assert float(network.blocks[0].self_attn.q.weight.grad.abs().max()) > 0
    assert network.head.head.weight.grad is None  # nothing of it reaches the output


def vace(plain: ContextAnyoneTransformer) -> VaceTransformer:
    torch.manual_seed(1)
    found = as_variant(plain, "vace")
    assert isinstance(found, VaceTransformer)
    return found.requires_grad_(False)


def test_context_blocks_change_nothing_before_they_are_trained(plain):
    network, text = vace(plain), draw(2, plain.config.text_len, plain.config.text_dim)
    latents, times = draw(2, 16, 4, 4, 4), torch.tensor([700.0, 300.0])
    found = network(latents, times, text).velocity
    assert torch.allclose(found[:, :, :3], plain(latents[:, :, :3], times, text).velocity, atol=1e-5)
    assert not found[:, :, 3].any()


def test_trained_context_blocks_read_the_clean_reference(plain, tmp_path):
    network, text = vace(plain), draw(2, plain.config.text_len, plain.config.text_dim)
    for layer in (network.context.before, *network.context.after):
        layer.weight += 0.1 * draw(*layer.weight.shape)
    video, times = draw(2, 16, 3, 4, 4), torch.tensor([700.0, 300.0])
    references = ReferenceInputs([draw(2, 16, 1, 4, 4, seed=5)], text, [])
    mode = TemporalConcatenation(network, references)
    shown = mode.velocity(video, times, text, with_reference=True)
    assert shown.shape == video.shape
    assert not torch.allclose(shown, mode.velocity(video, times, text, with_reference=False), atol=1e-4)
    save_context(tmp_path / "context.safetensors", network, torch.float32)
    other = vace(network.backbone())
    load_context(tmp_path / "context.safetensors", other)
    assert torch.equal(
        TemporalConcatenation(other, references).velocity(video, times, text, with_reference=True), shown
    )


def test_the_references_place_is_trained_as_the_video():
    latents, place, weights = draw(2, 16, 3, 4, 4), draw(2, 16, 1, 4, 4, seed=1), draw(2, 1, 3, 4, 4).abs()
    found = with_place(EncodedClips(latents, weights, place, None, target=place, target_weights=None))
    assert torch.equal(found.latents[:, :, :1], place)
    assert torch.equal(found.latents[:, :, 1:], latents)
    assert (found.weights[:, :, :1] == 1).all()
    assert torch.equal(found.weights[:, :, 1:], weights)


def test_vaces_way_has_no_reference_stream():
    with pytest.raises(ValidationError, match="phantom"):
        Settings(variant="vace")


def test_their_fingerprints_are_not_the_models():
    found = [
        fingerprint(Settings()),
        fingerprint(Settings(variant="aligned")),
        fingerprint(Settings(reading="phantom")),
        fingerprint(Settings(reading="phantom", variant="vace")),
    ]
    assert len({tuple(numbers) for numbers in found}) == 4
    assert fingerprint(Settings(variant="aligned")) == found[1]
    assert fingerprint(Settings(reading="phantom", variant="vace")) == found[3]
