"""The dual-guidance objective beside a second computation of it, and the distributions of what it draws."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_transformer_part import short, tiny_transformer_part
from torch import Tensor

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.regions import Regions
from contextanyone_core.model.transformer import ContextAnyoneTransformer, TransformerOutput
from contextanyone_core.sampling.flow import sample_sigmas
from training.parts.objective import (
    ConditionDraws,
    Draws,
    EncodedClips,
    ObjectiveSettings,
    ReferenceDraws,
    draw,
    dual_guidance_step,
    loss_terms,
)

pytestmark = pytest.mark.usefixtures("small_shards")
SIGMA, REFERENCE_SIGMA = torch.tensor([0.3, 0.8]), torch.tensor([0.0, 0.07])


def fixed(clips: EncodedClips) -> Draws:
    """One reference clean and one noised, the second text dropped."""
    noise, other = torch.randn_like(clips.latents), torch.randn_like(clips.reference_latents)
    return Draws(SIGMA, noise, [True, False], ReferenceDraws(REFERENCE_SIGMA, other))


def mean(error: Tensor, weights: Tensor) -> Tensor:
    return torch.stack([(w * e).sum() / w.expand_as(e).sum() for e, w in zip(error.square(), weights, strict=True)])


def by_hand(network: Any, clips: dict[str, Tensor], draws: Draws, texts: Any, factor: float) -> Tensor:
    """The loss of each sample, from the clips' latents, weights, pictures, tokens, target and target_weights."""
    assert draws.reference is not None
    s, r = (sigma[:, None, None, None, None] for sigma in (draws.sigma, draws.reference.sigma))
    noisy = (1 - s) * clips["latents"] + s * draws.noise
    shown = (1 - r) * clips["pictures"] + r * draws.reference.noise
    pictures = [shown[:, :, index : index + 1] for index in range(shown.shape[2])]
    references = ReferenceInputs(pictures, texts[1], [clips["tokens"]], timesteps=1000 * draws.reference.sigma)
    found = network(noisy, 1000 * draws.sigma, texts[0], references=references)
    video = mean(found.velocity - (draws.noise - clips["latents"]), clips["weights"])
    made = torch.cat([one - out for one, out in zip(pictures, found.reference_output, strict=True)], dim=2)
    return video + factor * mean(made - clips["target"], clips["target_weights"])


@pytest.mark.parametrize("reconstruct", ["target", "reference"])
def test_the_miniatures_loss_is_the_one_by_hand(tiny_folder, tmp_path, monkeypatch, reconstruct):
    part = tiny_transformer_part(tiny_folder, tmp_path / "pools", reconstruct=reconstruct, reference_weight=0.7)
    batch = short(part.batch(2))
    draws = fixed(part.encoded(batch))
    monkeypatch.setattr(part, "draws", lambda *_: draws)
    latents, pictures = batch["latents"].float(), batch["reference_latents"].float()
    weights = 1 + 2 * batch["masks"].float()
    assert len(weights.unique()) > 2
    aimed = latents[:, :, :1], weights[:, :, :1]
    target, target_weights = aimed if reconstruct == "target" else (pictures, torch.ones_like(weights[:, :, :1]))
    clips = {"latents": latents, "weights": weights, "pictures": pictures, "tokens": batch["image_embeds"].float()}
    clips |= {"target": target, "target_weights": target_weights}
    prompt = part.text_encoder.encode
    texts = prompt(["A woman. The same person is waving.", ""]), prompt(["A woman.", "A woman."])
    with torch.no_grad():
        losses, metrics = part.loss(batch, 2, torch.Generator())
        expected = by_hand(part.transformer, clips, draws, texts, 0.7)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics["video"] + 0.7 * metrics["reference"], losses, rtol=1e-6, atol=1e-6)


def test_the_loss_of_two_weighted_references_is_the_one_by_hand():
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    latents, pictures, target = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 16, 2, 4, 6), torch.randn(2, 16, 2, 4, 6)
    weights, target_weights = torch.rand(2, 1, 3, 4, 6), torch.rand(2, 1, 2, 4, 6)
    tokens, texts = torch.randn(2, 5, 24), (torch.randn(2, 12, 32), torch.randn(2, 12, 32))
    clips = EncodedClips(latents, weights, pictures, tokens, target, target_weights)
    draws = fixed(clips)
    given = {"latents": latents, "weights": weights, "pictures": pictures, "tokens": tokens}
    given |= {"target": target, "target_weights": target_weights}
    with torch.no_grad():
        losses, _ = dual_guidance_step(network, ObjectiveSettings(name="tiny"), clips, draws, texts)
        expected = by_hand(network, given, draws, texts, 0.2)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("anchored", [True, False])
def test_a_step_on_a_device_meets_no_tensor_of_the_host(anchored: bool) -> None:
    """With references, poses, starts and regions, and its backward pass: torch refuses the same as on a card."""

    def made(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    config = replace(ContextAnyoneConfig.tiny(), condition_dim=32)
    network = ContextAnyoneTransformer(config, device="meta")
    latents, still, weights, each = made(2, 16, 3, 4, 6), made(2, 16, 2, 4, 6), made(2, 1, 3, 4, 6), made(2)
    with pytest.raises(RuntimeError, match="device"):
        latents + torch.zeros(latents.shape)
    clips = EncodedClips(latents, weights, still, made(2, 5, 24), still, weights[:, :, :2], latents, True)
    clips = replace(clips, regions=Regions(weights, ((1, 2), (3,))), regions_of_pose=True)
    condition = ConditionDraws(made(2, dtype=torch.bool), made(2, dtype=torch.long), (True, False))
    reference = ReferenceDraws(each, still) if anchored else None
    draws = Draws(each, latents, [True, False], reference, condition)
    terms = loss_terms(network, ObjectiveSettings(name="tiny"), clips, draws, (made(2, 12, 32), made(2, 12, 32)))
    terms.total.sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(tensor.is_meta for tensor in (*terms, *gradients))


def clips_of(count: int) -> EncodedClips:
    latents, one = torch.zeros(count, 1, 1, 2, 2), torch.zeros(count, 1, 1, 1, 1)
    return EncodedClips(latents, one, latents, None, latents, None)


def test_noise_levels_and_dropped_texts_have_their_distributions():
    count, settings = 20_000, ObjectiveSettings(name="tiny", drop_reference=0, drop_text=0.3, shift=3.0, uniform=0.4)
    found = draw(settings, clips_of(count), torch.Generator().manual_seed(1))
    assert found.reference is not None
    assert sum(found.keep_text) / count == pytest.approx(0.7, abs=0.015)
    clean = found.reference.sigma == 0
    assert clean.float().mean().item() == pytest.approx(0.5, abs=0.015)
    noised = found.reference.sigma[~clean]
    assert 0 < noised.min() < 0.001
    assert 0.099 < noised.max() <= 0.1
    assert noised.mean().item() == pytest.approx(0.05, abs=0.002)
    generator = torch.Generator().manual_seed(2)
    expected = sample_sigmas(count, shift=3.0, uniform=0.4, distribution="logit_normal", generator=generator)
    levels = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(found.sigma.quantile(levels), expected.quantile(levels), rtol=0, atol=0.02)
    assert found.quarters == tuple(min(3, int(4 * sigma)) for sigma in found.sigma.tolist())
    drawn = (found.sigma, found.reference.sigma, torch.tensor(found.keep_text).float())
    for one, other in itertools.combinations(drawn, 2):  # apart from one another
        assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1]) < 0.03
    for noise in (found.noise, found.reference.noise):
        assert abs(noise.mean()) < 0.02
        assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert abs((found.noise * found.reference.noise).mean()) < 0.02


def test_start_frames_and_poses_are_dropped_with_their_probabilities():
    settings = ObjectiveSettings(name="tiny", drop_start=0.2, drop_pose=0.3)
    clips = replace(clips_of(20_000), latents=torch.zeros(20_000, 1, 3, 2, 2), conditioned=True)
    found = draw(settings, clips, torch.Generator().manual_seed(1)).condition
    assert found is not None
    counts = [(found.start_frames == frames).float().mean().item() for frames in range(3)]
    assert counts == pytest.approx([0.2, 0.4, 0.4], abs=0.015)
    assert found.keep_pose.float().mean().item() == pytest.approx(0.7, abs=0.015)
    assert found.with_pose == tuple(found.keep_pose.tolist())


def test_the_network_is_shown_the_clean_first_frames_and_the_poses_as_drawn():
    latents, poses, noise = torch.randn(3, 2, 16, 3, 4, 6)
    keep, frames, shown = torch.tensor([True, False]), torch.tensor([2, 0]), []

    def network(noisy: Tensor, *_: Tensor, condition: Any) -> Any:
        shown.append(condition)
        return TransformerOutput(noisy, None)

    clips = replace(clips_of(2), latents=latents, weights=torch.ones(2, 1, 3, 4, 6), poses=poses, conditioned=True)
    draws = Draws(SIGMA, noise, [True, True], None, ConditionDraws(keep, frames, (True, False)))
    dual_guidance_step(network, ObjectiveSettings(name="tiny"), clips, draws, (torch.zeros(2, 12, 32), None))
    (condition,) = shown
    assert torch.equal(condition.start[0, :, :2], latents[0, :, :2])
    assert not condition.start[0, :, 2].any()
    assert not condition.start[1].any()
    assert torch.equal(condition.pose[0], poses[0])
    assert not condition.pose[1].any()


def test_references_are_dropped_for_a_whole_batch_in_their_share_of_the_steps():
    settings, own = ObjectiveSettings(name="tiny", drop_reference=0.3), torch.Generator().manual_seed(3)
    dropped = [draw(settings, clips_of(2), own).reference is None for _ in range(2000)]
    assert sum(dropped) / len(dropped) == pytest.approx(0.3, abs=0.04)
    other, pair = torch.Generator().manual_seed(4), [torch.Generator().manual_seed(5) for _ in range(2)]
    for _ in range(50):  # two processes with noise of their own and one decision
        one, two = (draw(settings, clips_of(2), g, c) for g, c in zip((own, other), pair, strict=True))
        assert (one.reference is None) == (two.reference is None)
        assert not torch.equal(one.noise, two.noise)
