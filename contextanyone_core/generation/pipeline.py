"""From reference pictures and prompts to a video, headless: encode, sample, decode (paper, method)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from ..config import ContextAnyoneConfig
from ..encoders.condition import encode_condition
from ..encoders.on_demand import AnyImageEncoder, AnyTextEncoder, OnDemandTextEncoder
from ..encoders.reference import DualEncoder, EncodedReference
from ..encoders.vae import VideoVAE
from ..errors import InputError
from ..model.condition import NO_CHANNELS, VideoCondition
from ..model.losses import reconstruction
from ..model.references import ReferenceInputs
from ..model.rope import forget_tables
from ..model.transformer import ContextAnyoneTransformer
from ..model_specs import MINIATURE, MODELS, ModelSpec
from ..prompts import DEFAULT_NEGATIVE, TwoStagePrompt, check_prompts
from ..runtime.devices import check_device, free_cached
from ..runtime.options import PLAIN, Execution
from ..runtime.step_cache import cached_steps, named_pass
from ..sampling.flow import sigma_schedule
from ..sampling.guidance import Branch, CfgGuidance, Guidance, make_guidance
from ..sampling.reference_modes import REFERENCE_MODES, Conditioned, ReferenceMode, SeparateStream
from ..sampling.schedulers import make_sampler
from .conditions import Conditions, check_batch, condition_at, lead_to_start, stack_conditions, without_regions
from .load import check_components, load_components
from .settings import GenerationSettings

__all__ = [
    "MINIATURE",
    "Conditions",
    "ContextAnyonePipeline",
    "GenerationResult",
    "GenerationSettings",
    "LatentSampler",
    "Progress",
    "stack_conditions",
]

Progress = Callable[[int, int], None]
"""Called after every denoising step with (steps done, total steps)."""


@dataclass(frozen=True)
class GenerationResult:
    """A finished video, on the CPU in float32.

    Attributes:
        images: (B, 3, T, H, W) in [-1, 1].
        latents: (B, 16, t, h, w), normalised.
    """

    images: torch.Tensor
    latents: torch.Tensor


class LatentSampler:
    """Denoises latents under encoded conditions: the part of generation that needs no encoder.

    Args:
        transformer: in its compute dtype.
        reference_mode: how it is conditioned on references.
        device: compute device; None is the device of the weights.
        execution: how it is run (set up by `load.load_components`). Used here: whether the weights are on the device
            only while sampling, and whether a step cache is active.
    """

    def __init__(
        self,
        transformer: ContextAnyoneTransformer,
        reference_mode: ReferenceMode = SeparateStream,
        *,
        device: torch.device | None = None,
        execution: Execution = PLAIN,
    ) -> None:
        self.config: ContextAnyoneConfig = transformer.config
        self.reference_mode = reference_mode
        self.transformer = transformer.eval()
        weight = transformer.patch_embedding.weight
        self.device, self.dtype = weight.device if device is None else device, weight.dtype
        self.execution = execution

    def noise(self, seeds: Sequence[int], settings: GenerationSettings) -> torch.Tensor:
        """Noise (B, 16, t, h, w), one seed per video, drawn on the CPU in float32, so equal on every device."""
        shape = settings.shape.latents_shape(self.config)
        return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    @torch.no_grad()
    def sample_latents(
        self,
        conditions: Conditions,
        settings: GenerationSettings,
        noise: torch.Tensor,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Denoise a batch: latents (B, 16, t, h, w), float32, on the pipeline's device.

        The reference stream runs once; its keys and values are reused in every step and pass.

        Raises:
            ShapeError: noise and conditions are not of one batch.
        """
        check_batch(conditions, len(noise))
        video = conditions.video and conditions.video.to(self.device, self.dtype)
        references = conditions.references and conditions.references.at_gap(settings.gap)
        guidance = settings.guidance or make_guidance(self.reference_mode.guidance, self.config)
        shift = self.config.shift if settings.shift is None else settings.shift
        sampler = make_sampler(settings.sampler, sigma_schedule(settings.steps, shift))
        latents = noise.to(self.device, torch.float32)
        with self._weights_on_device():
            conditioned = self.reference_mode(self.transformer, references, settings.emphasis)
            with cached_steps(self.transformer, self.execution.step_cache):
                for index, sigma in enumerate(sampler.sigmas[:-1].tolist()):
                    share = index / settings.steps
                    given = condition_at(video, share, settings.pose_strength, settings.pose_window)
                    now = replace(conditions, video=given)
                    velocity = self._guided_velocity(latents, sigma, now, conditioned, guidance)
                    latents = sampler.step(lead_to_start(velocity, latents, sigma, conditions.video), index, latents)
                    if progress is not None:
                        progress(index + 1, settings.steps)
        return latents

    @contextmanager
    def _weights_on_device(self) -> Iterator[None]:
        """Context with the weights on the device; in balanced memory mode they are freed there on exit."""
        on_cpu = self.transformer.state_dict() if self.execution.memory == "balanced" else None
        try:
            if on_cpu is not None:
                self.transformer.to(self.device)
            yield
        finally:
            if on_cpu is not None:  # the device's copy is dropped, not copied back
                self.transformer.load_state_dict(on_cpu, assign=True)
                forget_tables()
                free_cached(self.device)

    def _guided_velocity(
        self,
        latents: torch.Tensor,
        sigma: float,
        conditions: Conditions,
        conditioned: Conditioned,
        guidance: Guidance,
    ) -> torch.Tensor:
        """Velocity (B, 16, t, h, w), float32, of one step: the passes that guidance asks for, combined."""
        timesteps = torch.full((len(latents),), 1000.0 * sigma, dtype=torch.float32, device=self.device)
        noisy, passes = latents.to(self.dtype), dict[tuple[bool, bool], torch.Tensor]()
        velocities: dict[Branch, torch.Tensor] = {}
        always = isinstance(guidance, CfgGuidance) and conditioned.cfg_keeps_references
        for branch in guidance.branches(sigma):
            with_reference = (branch.reference or always) and conditions.references is not None
            key = (branch.negative, with_reference)  # if there are no references, two branches can be the same pass
            if key not in passes:
                text_embeds, video = conditions.text_embeds, conditions.video
                if branch.negative:
                    text_embeds, video = conditions.negative_embeds, without_regions(video)
                with nullcontext() if self.execution.step_cache is None else named_pass(self.transformer, str(key)):
                    velocity = conditioned.velocity(
                        noisy, timesteps, text_embeds, with_reference=with_reference, condition=video
                    )
                passes[key] = velocity.float()
            velocities[branch] = passes[key]
        if not guidance.of_clean:
            return guidance.combine(velocities)
        clean = guidance.combine({branch: latents - sigma * velocity for branch, velocity in velocities.items()})
        return (latents - clean) / sigma


class ContextAnyonePipeline(LatentSampler):
    """The whole model with its encoders.

    Args:
        transformer: in its compute dtype.
        vae, text_encoder, image_encoder: the encoders; no image encoder where none is used (`load.reads_clip`).
        spec: which of the models of `REFERENCE_MODES` the transformer is.
        execution, device: as for `LatentSampler`.

    Raises:
        CheckpointError: the components do not belong together.
    """

    def __init__(
        self,
        transformer: ContextAnyoneTransformer,
        vae: VideoVAE,
        text_encoder: AnyTextEncoder,
        image_encoder: AnyImageEncoder | None,
        spec: ModelSpec = MODELS["contextanyone"],
        *,
        execution: Execution = PLAIN,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(transformer, REFERENCE_MODES[spec.name], device=device, execution=execution)
        self.spec = spec
        check_components(self.config, spec, text_encoder, image_encoder)
        self.vae = vae
        self.text_encoder = text_encoder
        self.dual_encoder = DualEncoder(vae, image_encoder, own_size=spec.own_size)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        spec: ModelSpec = MODELS["contextanyone"],
        execution: Execution = PLAIN,
    ) -> Self:
        """Load transformer, VAE, text encoder and image encoder of a folder (`load.load_components`), strictly.

        Args:
            folder: folder with the weight files.
            device, dtype: compute device and dtype.
            spec: which of the models of `REFERENCE_MODES` it is.
            execution: LoRAs, attention kernel, memory mode and so on.

        Raises:
            CheckpointError: a file is missing, damaged, of another model or does not fit the others; a LoRA likewise.
            InputError: the device does not exist, or does not support the requested execution.
            MissingDependencyError: diffusers, transformers or sentencepiece is not installed, or a kernel's package.
        """
        device = check_device(device)
        components, settled = load_components(Path(folder), device, dtype, spec, execution)
        encoders = (components.vae, components.text_encoder, components.image_encoder)
        return cls(components.transformer, *encoders, spec, execution=settled, device=device)

    @classmethod
    def miniature(cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """The miniature in this package; raises as `from_folder`."""
        return cls.from_folder(MINIATURE, device, dtype)

    def encode_references(
        self, images: Sequence[torch.Tensor | EncodedReference], size: tuple[int, int]
    ) -> list[EncodedReference]:
        """Encode pictures (1, 3, H, W) in [-1, 1] for videos of `size` (height, width); encoded ones are passed on.

        Raises:
            ShapeError: a picture is not (1, 3, H, W).
        """
        encode = self.dual_encoder.encode
        return [image if isinstance(image, EncodedReference) else encode(image, size) for image in images]

    def encode_condition(
        self, pose: torch.Tensor | None, start: torch.Tensor | None, size: tuple[int, int]
    ) -> VideoCondition:
        """Encode drawn poses (1, 3, T, H, W) of the video's own size and a clean first frame (1, 3, h, w), in [-1, 1].

        Raises:
            InputError: the model has no condition channels, or the start frame has not the aspect of `size`.
        """
        if not self.config.condition_dim:
            raise InputError(NO_CHANNELS)
        return encode_condition(self.vae, pose, start, size)

    def generate(
        self,
        references: Sequence[torch.Tensor | EncodedReference],
        prompt: TwoStagePrompt,
        settings: GenerationSettings,
        *,
        condition: VideoCondition | None = None,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> GenerationResult:
        """One video of the character in the references.

        Args:
            references: pictures (1, 3, H, W) in [-1, 1] of any size, or what `encode_references` made of them for the
                size of the video; none is plain text to video.
            prompt: the look of the reference, and the action.
            settings: size, steps, seed and so on.
            condition: pose and start frame, as `encode_condition` makes them, and the regions of `person_regions`.
            negative: the negative prompt; None takes the model's own.
            progress: called after every step.

        Raises:
            InputError: a prompt is too long, or a condition is given to a model without its channels.
            ShapeError: a reference is not (1, 3, H, W), or a condition is not of the video's size.
        """
        negative = self.own_negative if negative is None else negative
        self.check_prompt(prompt, negative)
        encoded = self.encode_references(references, settings.size)
        conditions = replace(self.conditions(encoded, prompt, negative=negative), video=condition)
        latents = self.sample_latents(conditions, settings, self.noise([settings.seed], settings), progress)
        return GenerationResult(self.decode(latents), latents.cpu())

    def encode_ahead(self, prompts: Sequence[TwoStagePrompt], negative: str, *, pictures: bool) -> None:
        """Encode the prompts of several videos in one load, if the text encoder is loaded on demand.

        Args:
            pictures: whether the videos have references, as some models' prompts depend on it.
        """
        if isinstance(self.text_encoder, OnDemandTextEncoder):
            asked = [self._with_task(prompt, pictures) for prompt in prompts]
            self.text_encoder.keep([negative, *(t for p in asked for t in (p.video_text, p.reference_text))])

    @property
    def own_negative(self) -> str:
        """The model's default negative prompt."""
        return self.spec.own_negative(self.config.text_len)

    def check_prompt(self, prompt: TwoStagePrompt, negative: str = DEFAULT_NEGATIVE) -> None:
        """Check the length of the prompts, before anything expensive.

        Raises:
            InputError: a prompt is too long; the message states by how many tokens.
        """
        asked = self._with_task(prompt, pictures=True)
        check_prompts(asked, negative, self.text_encoder.count_tokens, self.config.text_len)

    def conditions(
        self, references: Sequence[EncodedReference], prompt: TwoStagePrompt, *, negative: str = DEFAULT_NEGATIVE
    ) -> Conditions:
        """Encode the prompts and combine them with encoded references, for one video.

        Raises:
            InputError: a prompt is too long.
        """
        prompt = self._with_task(prompt, bool(references))
        texts = [prompt.video_text, negative, prompt.reference_text]
        embeds = self.text_encoder.encode(texts).to(self.device, self.dtype)
        video, unconditional, first = embeds[0:1], embeds[1:2], embeds[2:3]
        if not references:
            return Conditions(video, unconditional, None)
        latents = [reference.latents for reference in references]
        tokens = [reference.image_embeds for reference in references if reference.image_embeds is not None]
        return Conditions(video, unconditional, ReferenceInputs(latents, first, tokens).to(self.device, self.dtype))

    def _with_task(self, prompt: TwoStagePrompt, pictures: bool) -> TwoStagePrompt:
        return replace(prompt, first=self.spec.own_task(self.config.text_len, pictures=pictures) + prompt.first)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, T, H, W) in [-1, 1], float32, on the CPU; one video after the other, to spare memory."""
        return torch.cat([self.vae.decode(latents[i : i + 1]).cpu() for i in range(len(latents))])

    @torch.no_grad()
    def reconstruct(self, conditions: Conditions, settings: GenerationSettings) -> list[torch.Tensor]:
        """The reference stream's reconstructions: a picture (B, 3, H, W) per reference; empty without such a stream."""
        references = conditions.references and conditions.references.at_gap(settings.gap)
        if references is None:
            return []
        with self._weights_on_device():
            outputs = self.reference_mode(self.transformer, references).outputs
        pairs = zip(references.latents if outputs else [], outputs, strict=True)
        return [self.decode(reconstruction(latents, out).float())[:, :, 0] for latents, out in pairs]
