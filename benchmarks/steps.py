"""One denoising step of each model: all passes of its guidance, and their combination."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.networks import VACE_CONDITION, diffusers_vace, diffusers_wan, plain, random_transformer
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance, Guidance
from contextanyone_core.sampling.reference_modes import InContext, SeparateStream, TemporalConcatenation
from contextanyone_core.shapes import VideoShape

VARIANTS = ("wan", "wan-diffusers", "ours", "ours-pose", "ours-uncached", "ours-dual", "phantom", "bernini", "vace")
"""Plain Wan in our transformer and in diffusers; ours with the cache (cfg), with a pose and a start frame beside that,
without the cache, with dual guidance; others. Ours has condition channels, which the pose alone uses."""
CACHED = ("ours", "ours-pose", "ours-dual")
_SIGMA = 0.5
_CLIP_PICTURE, _CLIP_PATCH = 224, 14


@dataclass(frozen=True)
class Case:
    """A benchmark case: `frames` (4k + 1) of `width` x `height` pixels, and the number of references."""

    frames: int
    width: int
    height: int
    references: int

    @property
    def shape(self) -> VideoShape:
        """Size of the video."""
        return VideoShape(self.frames, self.height, self.width)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}, {self.references} reference" + "s" * (self.references > 1)


@dataclass(frozen=True)
class Inputs:
    """Random conditions and noise of one video, batch 1."""

    latents: Tensor
    timesteps: Tensor
    text_embeds: Tensor
    negative_embeds: Tensor
    references: ReferenceInputs
    condition: VideoCondition


class Conditioned(Protocol):
    """A reference mode (`contextanyone_core.sampling.reference_modes`) in one run: the velocity of each pass."""

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """Velocity of noisy latents (1, C, T, h, w), conditioned on the references if `with_reference`."""


@dataclass(frozen=True)
class Step:
    """One denoising step of one model."""

    network: nn.Module
    conditioned: Conditioned
    guidance: Guidance
    inputs: Inputs

    @torch.no_grad()
    def run(self) -> Tensor:
        """All passes and their combination: (1, C, T, h, w), float32."""
        inputs, velocities = self.inputs, {}
        for branch in self.guidance.branches(_SIGMA):
            text = inputs.negative_embeds if branch.negative else inputs.text_embeds
            velocity = self.conditioned.velocity(
                inputs.latents, inputs.timesteps, text, with_reference=branch.reference
            )
            velocities[branch] = velocity.float()
        return self.guidance.combine(velocities)

    @property
    def passes(self) -> int:
        """Number of passes through the network."""
        return len(self.guidance.branches(_SIGMA))


class Uncached:
    """Our model without cache: the reference stream runs again in every pass with references."""

    def __init__(self, transformer: ContextAnyoneTransformer, references: ReferenceInputs) -> None:
        self._transformer, self._references = transformer, references

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """As `Conditioned.velocity`."""
        references = self._references if with_reference else None
        return torch.as_tensor(self._transformer(latents, timesteps, text_embeds, references=references).velocity)


class Posed:
    """Our model with a pose and a start frame in every pass."""

    def __init__(
        self, transformer: ContextAnyoneTransformer, references: ReferenceInputs, condition: VideoCondition
    ) -> None:
        self._stream, self._condition = SeparateStream(transformer, references), condition

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """As `Conditioned.velocity`."""
        return self._stream.velocity(
            latents, timesteps, text_embeds, with_reference=with_reference, condition=self._condition
        )


class DiffusersWan:
    """diffusers' Wan network, text to video."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """As `Conditioned.velocity`, without references."""
        return torch.as_tensor(self._network(latents, timesteps, text_embeds, return_dict=False)[0])


class DiffusersVace:
    """diffusers' VACE: references precede the video in time, and both passes of a step are conditioned on them."""

    def __init__(self, network: Any, references: list[Tensor], latents: Tensor) -> None:
        self._network, self._count = network, len(references)
        frames, sides = latents.shape[2] + self._count, latents.shape[3:]
        self._context = latents.new_empty(1, VACE_CONDITION, frames, *sides).normal_()
        self._scale = latents.new_ones(len(network.config.vace_layers))
        self._before = torch.cat(references, dim=2)

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """As `Conditioned.velocity`."""
        out = self._network(
            torch.cat([self._before, latents], dim=2),
            timesteps,
            text_embeds,
            control_hidden_states=self._context,
            control_hidden_states_scale=self._scale,
            return_dict=False,
        )[0]
        return torch.as_tensor(out[:, :, self._count :])


class Networks:
    """The networks of the variants, each created once: ours, ours without the new layers, diffusers' two."""

    def __init__(self, config: ContextAnyoneConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self._made: dict[str, Any] = {}

    def of(self, variant: str) -> Any:
        """The network of a variant of VARIANTS."""
        kind = variant.partition("-")[0] if variant != "wan-diffusers" else variant
        makers = {
            "ours": partial(random_transformer, replace(self.config, condition_dim=2 * self.config.in_dim)),
            "wan": partial(random_transformer, plain(self.config)),
            "wan-diffusers": partial(diffusers_wan, self.config),
            "vace": partial(diffusers_vace, self.config),
        }
        kind = "wan" if kind in ("phantom", "bernini") else kind  # the same network with other inputs
        if kind not in self._made:
            self._made[kind] = makers[kind](self.device, self.dtype)
        return self._made[kind]

    @property
    def all(self) -> list[nn.Module]:
        """All networks created so far."""
        return list(self._made.values())


def random_inputs(config: ContextAnyoneConfig, case: Case, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Random conditions with the sizes of a run of `case`."""

    def random(*shape: int) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype).normal_()

    text = (1, config.text_len, config.text_dim)
    still, clip = case.shape.picture.latents_shape(config), []
    if config.image_dim is not None:
        clip = [random(1, 1 + (_CLIP_PICTURE // _CLIP_PATCH) ** 2, config.image_dim) for _ in range(case.references)]
    references = ReferenceInputs([random(*still) for _ in range(case.references)], random(*text), clip)
    timesteps = torch.full((1,), 1000 * _SIGMA, device=device)
    latents = random(*case.shape.latents_shape(config))
    condition = VideoCondition(random(*latents.shape), random(*still))
    return Inputs(latents, timesteps, random(*text), random(*text), references, condition)


@torch.no_grad()
def make_step(variant: str, networks: Networks, inputs: Inputs) -> Step:
    """The step of a variant of VARIANTS; computations done once per run (the reference cache) are done here."""
    network, references = networks.of(variant), inputs.references
    config = networks.config
    cfg, dual = CfgGuidance(config.cfg_scale), DualGuidance(*config.dual_scales)
    if variant == "wan":
        return Step(network, SeparateStream(network, None), cfg, inputs)
    if variant == "wan-diffusers":
        return Step(network, DiffusersWan(network), cfg, inputs)
    if variant == "ours-pose":
        return Step(network, Posed(network, references, inputs.condition), cfg, inputs)
    if variant == "ours-uncached":
        return Step(network, Uncached(network, references), cfg, inputs)
    if variant == "phantom":
        return Step(network, TemporalConcatenation(network, references), dual, inputs)
    if variant == "bernini":
        return Step(network, InContext(network, references), cfg, inputs)
    if variant == "vace":
        return Step(network, DiffusersVace(network, references.latents, inputs.latents), cfg, inputs)
    return Step(network, SeparateStream(network, references), dual if variant == "ours-dual" else cfg, inputs)
