"""Generated clips of every row of the table: with the reference, without, with another one's, without emphasis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from contextanyone_core.encoders.reference import EncodedReference
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import (
    Conditions,
    ContextAnyonePipeline,
    GenerationSettings,
    stack_conditions,
)
from contextanyone_core.generation.vace import VacePipeline
from contextanyone_core.media.image_io import images_to_frames, picture_to_images
from contextanyone_core.model_specs import ModelSpec
from contextanyone_core.prompts import TwoStagePrompt
from training.data.frames import on_white
from training.evaluation.characters import Subject, neighbour
from training.evaluation.settings import EvaluateSettings
from training.world import WorldSample

Clips = NDArray[np.uint8]
"""(B, T, H, W, 3)"""


class Maker(Protocol):
    """What makes the clips of an evaluation."""

    def make(self, variant: str, chosen: Sequence[Subject]) -> Iterator[Clips]:
        """Yield clips of up to `batch_size` subjects at a time, in order; all variants start from the same noise.

        Raises:
            InputError: the model made pixels that are not numbers.
        """

    def reconstructions(self, chosen: Sequence[Subject]) -> list[torch.Tensor]:
        """The reference stream's own pictures (3, H, W) in [-1, 1], reading the captions of training; empty without."""


def make_maker(pipeline: ContextAnyonePipeline | VacePipeline, settings: EvaluateSettings) -> Maker:
    """What a pipeline makes its clips with."""
    if isinstance(pipeline, VacePipeline):
        return HostedMaker(pipeline, settings)
    return ClipMaker(pipeline, settings)


class ClipMaker:
    """Makes the clips of a variant, batch by batch; each reference picture is encoded once."""

    def __init__(self, pipeline: ContextAnyonePipeline, settings: EvaluateSettings) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self._encoded: dict[Subject, EncodedReference] = {}

    def make(self, variant: str, chosen: Sequence[Subject]) -> Iterator[Clips]:
        """As `Maker`."""
        generation = self.settings.generation(emphasis=0.0 if variant == "emphasis_0" else 1.0)
        for start in range(0, len(chosen), self.settings.batch_size):
            indices = range(start, min(start + self.settings.batch_size, len(chosen)))
            conditions = [self._conditions(variant, index, chosen) for index in indices]
            yield self.generate(conditions, [chosen[index].seed for index in indices], variant, generation)

    def generate(
        self, conditions: Sequence[Conditions], seeds: Sequence[int], variant: str, generation: GenerationSettings
    ) -> Clips:
        """One batch of clips, each from its own seed's noise.

        Raises:
            InputError: as `Maker.make`.
        """
        noise = self.pipeline.noise(list(seeds), generation)
        latents = self.pipeline.sample_latents(stack_conditions(conditions), generation, noise)
        return self._frames(latents, variant)

    def reconstructions(self, chosen: Sequence[Subject]) -> list[torch.Tensor]:
        """As `Maker`."""
        generation = self.settings.generation()
        pictures: list[torch.Tensor] = []
        for start in range(0, len(chosen), self.settings.batch_size):
            batch = chosen[start : start + self.settings.batch_size]
            items = [self.pipeline.conditions([self.encode(subject)], subject.captions) for subject in batch]
            for drawn in self.pipeline.reconstruct(stack_conditions(items), generation):
                pictures += drawn.unbind(0)
        return pictures

    def encode(self, subject: Subject) -> EncodedReference:
        """The subject's reference picture through the dual encoder."""
        if subject not in self._encoded:
            picture = shown_picture(subject.drawn, self.pipeline.spec)
            image = picture_to_images(picture).to(self.pipeline.device)
            size = (self.settings.size, self.settings.size)
            self._encoded[subject] = self.pipeline.dual_encoder.encode(image, size)
        return self._encoded[subject]

    def _conditions(self, variant: str, index: int, chosen: Sequence[Subject]) -> Conditions:
        prompt, shown = _asked(variant, index, chosen)
        return self.pipeline.conditions([] if shown is None else [self.encode(shown)], prompt)

    def _frames(self, latents: torch.Tensor, variant: str) -> Clips:
        _require_numbers(latents, variant)
        return np.stack([images_to_frames(images) for images in self.pipeline.decode(latents)])


class HostedMaker:
    """Makes the clips of a variant through a host's pipeline, which makes one at a time."""

    def __init__(self, pipeline: VacePipeline, settings: EvaluateSettings) -> None:
        self.pipeline = pipeline
        self.settings = settings

    def make(self, variant: str, chosen: Sequence[Subject]) -> Iterator[Clips]:
        """As `Maker`."""
        for index, subject in enumerate(chosen):
            prompt, shown = _asked(variant, index, chosen)
            pictures = [] if shown is None else [picture_to_images(shown.drawn.reference)]
            result = self.pipeline.generate(pictures, prompt, replace(self.settings.generation(), seed=subject.seed))
            _require_numbers(result.latents, variant)
            yield images_to_frames(result.images)[None]

    def reconstructions(self, chosen: Sequence[Subject]) -> list[torch.Tensor]:
        """None: there is no reference stream."""
        return []


def shown_picture(drawn: WorldSample, spec: ModelSpec) -> NDArray[np.uint8]:
    """A character's picture (H, W, 3) as a model is shown it: cut out on white where its references are."""
    return on_white(drawn.reference, drawn.reference_mask) if spec.cut_out else drawn.reference


def _asked(variant: str, index: int, chosen: Sequence[Subject]) -> tuple[TwoStagePrompt, Subject | None]:
    """The prompt of a variant, and whose picture is shown."""
    subject = chosen[index]
    prompt = subject.contradiction.prompt if variant == "contradicting_prompt" else subject.neutral
    if variant == "text_only":
        return prompt, None
    return prompt, neighbour(index, chosen) if variant == "shuffled_reference" else subject


def _require_numbers(latents: torch.Tensor, variant: str) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise InputError(f"{variant}: the latents are not finite numbers; try --set dtype=float32.")
