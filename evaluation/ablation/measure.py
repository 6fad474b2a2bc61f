"""Metrics of one trained cell on test characters: attributes kept, drift, copying of the reference, motion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from contextanyone_core.encoders.vae import VideoVAE
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings, stack_conditions
from contextanyone_core.media.image_io import images_to_frames, picture_to_images
from contextanyone_core.model_specs import MODELS
from contextanyone_core.sampling.guidance import CfgGuidance
from contextanyone_core.weights.checkpoint import load_transformer
from evaluation.ablation.part import Settings, prompt_of
from evaluation.ablation.plan import Measuring
from evaluation.ablation.vace import VaceTransformer, load_context
from evaluation.ablation.variants import as_variant
from training.evaluation.accuracy import attributes_right, scene_accuracy
from training.evaluation.characters import Subject, subjects
from training.evaluation.clips import shown_picture
from training.evaluation.motion import mean_flow
from training.evaluation.probe import Probe, join_readings, read_clips

_PLACE_SEED = 1 << 32  # added to a subject's: noise of the reference's place


@dataclass(frozen=True)
class Tools:
    """The frozen networks that a measurement uses."""

    vae: VideoVAE
    text_encoder: Any
    image_encoder: Any
    probe: Probe


def measure(path: Path, settings: Settings, measuring: Measuring, tools: Tools) -> dict[str, Any]:
    """Measure an exported transformer.

    Returns: values per character in the order of the test seeds, for paired comparisons: `attributes` (fraction kept),
    `first` and `last` (the same in the first and last frames), `copied` (fraction of frames that show the place of the
    reference), `motion` (optical flow relative to the rendering); and `scene` (action, place and light as prompted).
    """
    chosen = subjects(measuring.seed, measuring.count, settings.size, settings.num_frames)
    pipeline = _pipeline(path, settings, tools)
    generation = GenerationSettings(
        num_frames=settings.num_frames,
        width=settings.size,
        height=settings.size,
        steps=measuring.steps,
        sampler=measuring.sampler,
        guidance=CfgGuidance(measuring.guidance_scale),
    )
    clips, readings = [], []
    starts = range(0, len(chosen), measuring.batch_size)
    for start in tqdm(starts, desc="measuring", unit="batch", disable=None):
        batch = chosen[start : start + measuring.batch_size]
        made = _clips(pipeline, settings, generation, batch)
        clips.append(made)
        readings.append(read_clips(tools.probe, torch.from_numpy(made)))
    frames, reading = np.concatenate(clips), join_readings(readings)
    right = attributes_right(reading, np.stack([subject.labels for subject in chosen]))
    scenes = np.stack([subject.scene_labels for subject in chosen])
    pictured = np.asarray([subject.drawn.reference_scene.labels()[1] for subject in chosen])
    flows = [
        mean_flow(clip, points.numpy()) / max(_rendered_flow(subject, tools.probe), 1e-6)
        for clip, points, subject in zip(frames, reading.points, chosen, strict=True)
    ]
    return {
        "attributes": right.mean((1, 2)).tolist(),
        "by_attribute": right.mean((0, 1)).tolist(),
        "first": right[:, 0].mean(1).tolist(),
        "last": right[:, -1].mean(1).tolist(),
        "copied": (reading.frames["place"].numpy() == pictured[:, None]).mean(1).tolist(),
        "motion": flows,
        "scene": scene_accuracy(reading, scenes),
    }


def _pipeline(path: Path, settings: Settings, tools: Tools) -> ContextAnyonePipeline:
    network = load_transformer(path, dtype=torch.float32, plain=settings.one_stream)
    network = as_variant(network, settings.variant)
    if isinstance(network, VaceTransformer):
        load_context(path.with_name("context.safetensors"), network)
    image_encoder = None if network.config.image_dim is None else tools.image_encoder
    spec = MODELS[settings.reading]
    vae = VideoVAE(tools.vae.vae, network.config)
    return ContextAnyonePipeline(network, vae, tools.text_encoder, image_encoder, spec)


def _clips(
    pipeline: ContextAnyonePipeline, settings: Settings, generation: GenerationSettings, batch: list[Subject]
) -> NDArray[np.uint8]:
    """Clips (B, T, H, W, 3) of a batch of subjects; the prompts name no attributes."""
    conditions = []
    for subject in batch:
        references = []
        if settings.variant != "text_only":
            picture = picture_to_images(shown_picture(subject.drawn, pipeline.spec))
            references = [pipeline.dual_encoder.encode(picture, (settings.size, settings.size))]
        conditions.append(pipeline.conditions(references, prompt_of(settings.variant, subject.neutral)))
    noise = pipeline.noise([subject.seed for subject in batch], generation)
    places = 0
    if settings.variant == "vace":  # the reference's place is generated too, and dropped
        still = replace(generation, num_frames=1)
        place = pipeline.noise([_PLACE_SEED + subject.seed for subject in batch], still)
        noise, places = torch.cat([place, noise], dim=2), 1
    latents = pipeline.sample_latents(stack_conditions(conditions), generation, noise)[:, :, places:]
    return np.stack([images_to_frames(images) for images in pipeline.decode(latents)])


def _rendered_flow(subject: Subject, probe: Probe) -> float:
    video = subject.drawn.video
    return mean_flow(video, read_clips(probe, torch.from_numpy(video[None])).points[0].numpy())
