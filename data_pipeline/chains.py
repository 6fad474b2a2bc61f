"""Chains as data: which stages, in the order of their cost."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.config import PipelineSettings
from data_pipeline.engine.work import Job, Selection
from data_pipeline.models.stages import Captions, EditAndVerify, Masks, Person, TargetFrame
from data_pipeline.models.world import WorldModels
from data_pipeline.pixels.scores import Blur, Dark, Hashes, Letterbox, Motion, Static, Text
from data_pipeline.pixels.shots import Probe, Shots
from data_pipeline.sources import FolderSources, Sources, WorldSources
from data_pipeline.stage import Stage


def stages_of(chain: str, root: Path) -> tuple[Stage, ...]:
    """The stages of a chain; `root` is the output folder."""
    cheap = (Blur(root), Dark(root), Static(root), Motion(root), Letterbox(root), Text(root), Hashes(root))
    pixels: tuple[Stage, ...] = (Probe(root), Shots(root), *cheap)
    if chain == "pixels":
        return pixels
    models = WorldModels(root)
    asked = (Person(root, models), Masks(root, models), TargetFrame(root, models), Captions(root, models))
    return (*pixels, *asked, EditAndVerify(root, models))


def sources_of(settings: PipelineSettings) -> Sources:
    """The sources that a configuration names."""
    where = settings.sources
    if where.world is not None:
        return WorldSources(where.world)
    return FolderSources(where.folder or Path())


def job_of(settings: PipelineSettings, root: Path, selection: Selection | None = None) -> Job:
    """What a worker needs for a configuration."""
    stages, sources = stages_of(settings.chain, root), sources_of(settings)
    return Job(root, sources, stages, selection or Selection(), settings.engine.retries)
