"""The clips of a cell: the shipped miniature with a person's LoRA, driven by poses, prompts that name no attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contextanyone_core.generation.personal import person_regions
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings, stack_conditions
from contextanyone_core.media.image_io import frames_to_images, images_to_frames, picture_to_images
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.pose.drawing import STYLES, draw_poses
from contextanyone_core.pose.hull import person_hull
from contextanyone_core.prompts import TwoStagePrompt, rows_naming
from contextanyone_core.sampling.flow import add_noise, velocity_target
from contextanyone_core.sampling.guidance import CfgGuidance
from contextanyone_core.weights.lora import load_lora, merge_loras
from training.data.frames import on_white
from training.data.world_poses import world_poses
from training.personal_study.people import CLASS, FRAMES, NAME, SIDE, Asked, Person
from training.randomness import torch_generator
from training.world import neutral_prompts, posed_sample

_BATCH = 8
_GUIDANCE = 3.0  # as in the evaluation of the miniature
_SIGMAS = (0.3, 0.7)
_FORGOTTEN_SEEDS = 5_000  # training characters, whom the base knows


@dataclass
class Maker:
    """Generates with one network: the miniature, or with a LoRA merged.

    Args:
        lora: the personal file; None is the miniature itself. steps: of the sampler. strength: of the LoRA.
    """

    lora: Path | None
    steps: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        self.pipeline = ContextAnyonePipeline.miniature()
        if self.lora is not None:
            merge_loras(self.pipeline.transformer, [(load_lora(self.lora, self.pipeline.transformer), self.strength)])

    def clips(
        self, who: str, asked: Sequence[Asked], reference: NDArray[np.uint8] | None, *, regions: bool = False
    ) -> NDArray[np.uint8]:
        """A clip (T, H, W, 3) for each request.

        Args:
            who: the beginning of the prompt. reference: a picture (H, W, 3) for the reference stream.
            regions: whether the background reads the prompt without the name, by the hull of the pose.
        """
        pipeline, size = self.pipeline, (SIDE, SIDE)
        settings = GenerationSettings(
            num_frames=FRAMES, width=SIDE, height=SIDE, steps=self.steps, guidance=CfgGuidance(_GUIDANCE)
        )
        encoded = [] if reference is None else [pipeline.dual_encoder.encode(picture_to_images(reference), size)]
        made = []
        for start in range(0, len(asked), _BATCH):
            some, given = asked[start : start + _BATCH], []
            for one in some:
                conditions = pipeline.conditions(encoded, TwoStagePrompt(one.prompt(who), ""))
                given.append(replace(conditions, video=self._posed(one, one.prompt(who), regions=regions)))
            noise = pipeline.noise([one.seed for one in some], settings)
            latents = pipeline.sample_latents(stack_conditions(given), settings, noise)
            images = pipeline.decode(latents)
            made += [images_to_frames(images[index : index + 1]) for index in range(len(some))]
        return np.stack(made)

    def round_trip(self, asked: Sequence[Asked]) -> NDArray[np.uint8]:
        """The renderings of what is asked (B, T, H, W, 3), encoded and decoded."""
        vae = self.pipeline.vae
        shown = [images_to_frames(vae.decode(vae.encode(frames_to_images(one.rendering)))) for one in asked]
        return np.stack(shown)

    def _posed(self, one: Asked, prompt: str, *, regions: bool) -> VideoCondition:
        """The condition of a clip: its poses and, with regions, where the person is."""
        pipeline, poses = self.pipeline, world_poses(one.joints, (SIDE, SIDE))
        style = STYLES[pipeline.config.pose_style]
        condition = pipeline.encode_condition(frames_to_images(draw_poses(poses, style)), None, (SIDE, SIDE))
        rows = rows_naming(pipeline.text_encoder.split(prompt), NAME, CLASS) if regions else ()
        return replace(condition, regions=person_regions(person_hull(poses, style), rows)) if rows else condition

    @torch.no_grad()
    def loss_of_others(self, count: int) -> float:
        """Mean squared error of the velocity on clips of other characters, at fixed noise levels."""
        pipeline, losses = self.pipeline, []
        for index in range(count):
            pair = posed_sample(_FORGOTTEN_SEEDS + index, FRAMES, (SIDE, SIDE))
            latents = pipeline.vae.encode(frames_to_images(pair.video))
            prompt = TwoStagePrompt(neutral_prompts(pair.scene)[1], "")
            text = pipeline.conditions([], prompt).text_embeds
            for sigma in _SIGMAS:
                noise = torch.randn(latents.shape, generator=torch_generator(index, 0, f"forgetting {sigma}"))
                level = torch.tensor([sigma])
                found = pipeline.transformer(add_noise(latents, noise, level), 1000 * level, text).velocity
                losses.append(float((found - velocity_target(latents, noise)).square().mean()))
        return float(np.mean(losses))


def picture_of(person: Person) -> NDArray[np.uint8]:
    """The picture for the reference stream: the first frame of the clip, the person alone on white."""
    return on_white(person.clip.video[0], person.clip.masks[0])
