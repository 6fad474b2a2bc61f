"""The training objective of the transformer: what is drawn for a batch, and the dual-guidance loss of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.losses import DualGuidanceLoss, dual_guidance_loss, per_sample_error, reconstruction
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.regions import Regions
from contextanyone_core.model.transfer import moved
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.model_specs import MODELS
from contextanyone_core.sampling.flow import SigmaDistribution, add_noise, sample_sigmas, velocity_target
from contextanyone_core.sampling.reference_modes import REFERENCE_MODES
from training.lora import without_lora
from training.parts.base import Metrics, PartSettings


class ObjectiveSettings(PartSettings):
    """The numbers of the objective, the same for every source of data.

    `reading` is the reference mode (`contextanyone_core.sampling.reference_modes`): ContextAnyone's separate stream, or
    clean references in the video's own stream, without reconstruction (`reference_weight` and `reconstruct` have no
    effect). Where `drop_reference` drops them, phantom and refalign see zeros in their place, and bernini no reference.
    """

    reading: Literal["contextanyone", "phantom", "refalign", "bernini"] = "contextanyone"
    reference_weight: float = Field(default=0.2, ge=0)  # the paper's lambda
    reconstruct: Literal["target", "reference"] = "target"
    drop_reference: float = Field(default=0.15, ge=0, lt=1)  # of the batches
    drop_text: float = Field(default=0.1, ge=0, lt=1)  # of the samples
    drop_pose: float = Field(default=0.15, ge=0, le=1)  # of the samples, where the network has condition channels
    drop_start: float = Field(default=0.5, ge=0, le=1)  # likewise; the others show their first latent frames
    sigmas: SigmaDistribution = "logit_normal"
    shift: float = Field(default=2.0, gt=0)
    uniform: float = Field(default=0.2, ge=0, le=1)

    @property
    def one_stream(self) -> bool:
        """Whether references are tokens of the video's own stream."""
        return MODELS[self.reading].one_stream


@dataclass(frozen=True)
class EncodedClips:
    """A batch as the frozen encoders encode it, float32.

    Attributes:
        latents: (B, 16, t, h, w). weights: (B, 1, t, h, w), of each latent in the loss.
        reference_latents: (B, 16, R, h, w), a frame for each of R references. image_embeds: (B, N, D), the CLIP tokens
            of all of them; None without a CLIP branch.
        target: (B, 16, R, h, w), what the reference stream must reconstruct; target_weights: (B, 1, R, h, w), its
            weights, None for equal ones.
        poses: (B, 16, t, h, w), latents of the drawn poses; None without them.
        conditioned: whether the network has condition channels, and so is shown poses and first frames.
        start_frames: how many first latent frames a sample may be shown, 1 or 2.
        regions: where the person named in the prompts is, for mask-guided attention; None without it.
        regions_of_pose: whether the regions come from the poses: they are then dropped with a sample's pose.
    """

    latents: Tensor
    weights: Tensor
    reference_latents: Tensor
    image_embeds: Tensor | None
    target: Tensor
    target_weights: Tensor | None
    poses: Tensor | None = None
    conditioned: bool = False
    regions: Regions | None = None
    regions_of_pose: bool = False
    start_frames: int = 2

    def first(self, count: int) -> EncodedClips:
        """The first clips, as `prior_step` needs them: their videos and poses."""
        poses = None if self.poses is None else self.poses[:count]
        return replace(self, latents=self.latents[:count], poses=poses)


@dataclass(frozen=True)
class ConditionDraws:
    """Which conditions each sample has.

    Attributes:
        keep_pose: (B,) bool. start_frames: (B,), how many clean latent frames; 0 for none.
        with_pose: keep_pose as Python values, so that the host need not wait for the device.
    """

    keep_pose: Tensor
    start_frames: Tensor
    with_pose: tuple[bool, ...] = ()

    def first(self, count: int) -> ConditionDraws:
        """Those of the first clips."""
        return ConditionDraws(self.keep_pose[:count], self.start_frames[:count])


@dataclass(frozen=True)
class ReferenceDraws:
    """Noise levels (B,) of the references, 0 for half of them, and their noise."""

    sigma: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Draws:
    """All random numbers of a step.

    Attributes:
        sigma: (B,), noise levels of the clips. noise: (B, 16, t, h, w).
        keep_text: whether each sample's video stream gets its prompt; the others get the empty one.
        reference: None if this batch drops its references.
        condition: None if the network has no condition channels.
        quarters: for each sample the quarter of [0, 1] that its sigma lies in, 0 to 3, for the log; empty to log none.
    """

    sigma: Tensor
    noise: Tensor
    keep_text: list[bool]
    reference: ReferenceDraws | None
    condition: ConditionDraws | None = None
    quarters: tuple[int, ...] = ()

    def first(self, count: int) -> Draws:
        """Noise and condition of the first clips, without references."""
        condition = None if self.condition is None else self.condition.first(count)
        return Draws(self.sigma[:count], self.noise[:count], self.keep_text[:count], None, condition)


def draw(
    settings: ObjectiveSettings,
    clips: EncodedClips,
    generator: torch.Generator,
    common: torch.Generator | None = None,
) -> Draws:
    """Draw on the CPU, move to where the clips are; the reference is dropped for a whole batch, text for samples.

    Args:
        common: a generator with the same state in all processes, so that all drop their references in the same steps:
            the steps then take equally long, and FSDP needs all processes to use the same layers.
    """
    count, device = len(clips.latents), clips.latents.device
    noise = moved(torch.randn(clips.latents.shape, generator=generator), device)
    drawn = sample_sigmas(
        count,
        shift=settings.shift,
        uniform=settings.uniform,
        distribution=settings.sigmas,
        generator=generator,
    )
    sigma, quarters = moved(drawn, device), tuple((drawn * 4).long().clamp(max=3).tolist())
    draws = torch.rand(count + 1, generator=generator)
    keep_text = (draws[1:] >= settings.drop_text).tolist()
    dropping = draws[0] if common is None else torch.rand((), generator=common)
    condition = _draw_condition(settings, clips, generator)
    if dropping < settings.drop_reference:
        return Draws(sigma, noise, keep_text, None, condition, quarters)
    coin, level = torch.rand(2, count, generator=generator)
    # Half of the references clean, half with sigma in (0, 0.1].
    reference_sigma = moved(torch.where(coin < 0.5, torch.zeros(count), 0.1 * (1.0 - level)), device)
    reference_noise = moved(torch.randn(clips.reference_latents.shape, generator=generator), device)
    return Draws(sigma, noise, keep_text, ReferenceDraws(reference_sigma, reference_noise), condition, quarters)


def _draw_condition(
    settings: ObjectiveSettings, clips: EncodedClips, generator: torch.Generator
) -> ConditionDraws | None:
    """Which poses and start frames are kept; a clip of one latent frame gets no start, or the network would copy it."""
    if not clips.conditioned:
        return None
    count, frames = clips.latents.shape[0], clips.latents.shape[2]
    pose, start, second = torch.rand(3, count, generator=generator)
    shown = (1 + (second < 0.5).long()).clamp(max=min(clips.start_frames, frames - 1))
    start_frames = torch.where(start < settings.drop_start, torch.zeros_like(shown), shown)
    device = clips.latents.device
    kept = pose >= settings.drop_pose
    return ConditionDraws(moved(kept, device), moved(start_frames, device), tuple(kept.tolist()))


def fixed_draws(clips: EncodedClips, sigma: float, generator: torch.Generator) -> Draws:
    """Draws for validation: one noise level for all clips, clean references, nothing dropped, no start frame."""
    count, device = len(clips.latents), clips.latents.device
    noise = torch.randn(clips.latents.shape, generator=generator).to(device)
    clean = ReferenceDraws(torch.zeros(count, device=device), torch.zeros_like(clips.reference_latents))
    condition = None
    if clips.conditioned:
        every = torch.ones(count, dtype=torch.bool, device=device)
        condition = ConditionDraws(every, torch.zeros(count, dtype=torch.long, device=device), (True,) * count)
    return Draws(torch.full((count,), sigma, device=device), noise, [True] * count, clean, condition)


def dual_guidance_step(
    transformer: ContextAnyoneTransformer,
    settings: ObjectiveSettings,
    clips: EncodedClips,
    draws: Draws,
    texts: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Metrics]:
    """The loss of each sample (B,), and its terms for the log.

    Args:
        texts: (B, text_len, text_dim) of the video stream and of the reference stream; the latter is needed where
            draws.reference is given.
    """
    terms = loss_terms(transformer, settings, clips, draws, texts)
    used = draws.reference is not None and texts[1] is not None and not settings.one_stream
    return terms.total, _metrics(terms.video, terms.reference if used else None, draws.quarters)


def prior_step(
    transformer: ContextAnyoneTransformer, clips: EncodedClips, draws: Draws, texts: Tensor
) -> tuple[Tensor, Metrics]:
    """Prior preservation without data: the LoRA must not change the velocity under prompts that do not name the person.

    The target is the velocity of the network without its LoRA, for the same noisy clips and prompts; all latents weigh
    the same.

    Args:
        texts: (B, text_len, text_dim), prompts of the class, which do not name the person.

    Returns: the loss of each sample (B,), and its term for the log.
    """
    noisy, timesteps = add_noise(clips.latents, draws.noise, draws.sigma), 1000.0 * draws.sigma
    condition = _condition(clips, draws.condition)
    with torch.no_grad(), without_lora(transformer):
        target = transformer(noisy, timesteps, texts, condition=condition).velocity
    velocity = transformer(noisy, timesteps, texts, condition=condition).velocity
    losses = per_sample_error([velocity.float()], [target.float()])
    return losses, {"prior": losses.detach()}


def loss_terms(
    transformer: ContextAnyoneTransformer,
    settings: ObjectiveSettings,
    clips: EncodedClips,
    draws: Draws,
    texts: tuple[Tensor, Tensor | None],
) -> DualGuidanceLoss:
    """The forward pass and its loss, as in `dual_guidance_step`; nothing here depends on the tensors' values."""
    noisy = add_noise(clips.latents, draws.noise, draws.sigma)
    reconstructions: list[Tensor] = []
    if settings.one_stream:
        references = ReferenceInputs(list(torch.split(clips.reference_latents, 1, dim=2)), texts[0], [])
        mode = REFERENCE_MODES[settings.reading](transformer, references)
        with_reference = draws.reference is not None
        velocity = mode.velocity(noisy, 1000.0 * draws.sigma, texts[0], with_reference=with_reference)
    else:
        velocity, reconstructions = _velocity_and_reconstructions(transformer, clips, draws, noisy, texts)
    weights = None if clips.target_weights is None else torch.split(clips.target_weights, 1, dim=2)
    return dual_guidance_loss(
        velocity.float(),
        velocity_target(clips.latents, draws.noise),
        reconstructions,
        torch.split(clips.target, 1, dim=2) if reconstructions else (),
        reference_weight=settings.reference_weight,
        video_mask=clips.weights,
        reference_masks=weights if reconstructions else None,
    )


def _velocity_and_reconstructions(
    transformer: ContextAnyoneTransformer,
    clips: EncodedClips,
    draws: Draws,
    noisy: Tensor,
    texts: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, list[Tensor]]:
    """Both streams' outputs: the video's velocity (B, 16, t, h, w), and each reference's reconstruction."""
    video_text, first_text = texts
    condition = _condition(clips, draws.condition)
    if clips.regions is not None:  # the empty prompt has no name
        regions = clips.regions.keep_names(draws.keep_text)
        if clips.regions_of_pose and draws.condition is not None:
            regions = regions.keep_masks(draws.condition.keep_pose)
        condition = replace(condition or VideoCondition(), regions=regions)
    if draws.reference is None or first_text is None:
        return transformer(noisy, 1000.0 * draws.sigma, video_text, condition=condition).velocity, []
    noised = add_noise(clips.reference_latents, draws.reference.noise, draws.reference.sigma)
    tokens = [] if clips.image_embeds is None else [clips.image_embeds]
    inputs = list(torch.split(noised, 1, dim=2))
    references = ReferenceInputs(inputs, first_text, tokens, timesteps=1000.0 * draws.reference.sigma)
    output = transformer(noisy, 1000.0 * draws.sigma, video_text, references=references, condition=condition)
    pairs = zip(inputs, output.reference_output, strict=True)
    return output.velocity, [reconstruction(latents, out.float()) for latents, out in pairs]


def _condition(clips: EncodedClips, draws: ConditionDraws | None) -> VideoCondition | None:
    """Poses and start frames as drawn, zeros where a sample has none, so that shapes are the same in every step."""
    if draws is None:
        return None
    poses = torch.zeros_like(clips.latents) if clips.poses is None else clips.poses
    shown = torch.arange(clips.latents.shape[2], device=clips.latents.device) < draws.start_frames[:, None]
    return VideoCondition(
        pose=poses * draws.keep_pose[:, None, None, None, None],
        start=clips.latents * shown[:, None, :, None, None],
    )


def _metrics(video: Tensor, reference: Tensor | None, quarters: Sequence[int]) -> Metrics:
    """Terms for the log, the video's also by quarter of sigma; nothing here waits for the device."""
    video, metrics = video.detach(), {"video": video.detach()}
    if reference is not None:
        metrics["reference"] = reference.detach()
    for index in sorted(set(quarters)):
        metrics[f"sigma_{index}"] = torch.stack([video[i] for i, quarter in enumerate(quarters) if quarter == index])
    return dict(metrics)
