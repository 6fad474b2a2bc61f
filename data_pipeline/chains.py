"""Chains as data: which stages, in the order of their cost, and by which models."""

from __future__ import annotations

from pathlib import Path

from contextanyone_core.errors import InputError
from data_pipeline.config import PipelineSettings
from data_pipeline.decisions.rules import rules_of
from data_pipeline.engine.work import Job, Selection
from data_pipeline.licences import refuse_non_commercial
from data_pipeline.models.gpu import GpuKit
from data_pipeline.models.pictures import PictureModels
from data_pipeline.models.protocols import Models
from data_pipeline.models.references import EditAndVerify, OtherShot, SelfReference
from data_pipeline.models.small import SmallKit
from data_pipeline.models.stages import Captions, Masks, Person, Poses, TargetFrame
from data_pipeline.models.world import WorldModels
from data_pipeline.pixels.learned import RecognisedText, TransNetShots
from data_pipeline.pixels.scores import Blur, Dark, Hashes, Letterbox, Motion, Static, Text
from data_pipeline.pixels.shots import Probe, Shots
from data_pipeline.rows import lines_of
from data_pipeline.sources import FolderSources, Sources, WorldSources
from data_pipeline.stage import Stage, cards_of

_INSTRUCTIONS = (
    "Keep this person's face, hair, body and clothes exactly. The person walks in a sunny park.",
    "Keep this person's face, hair, body and clothes exactly. The person sits in a café in the evening.",
    "Keep this person's face, hair, body and clothes exactly. The person stands on a beach at sunset, arms raised.",
    "Keep this person's face, hair, body and clothes exactly. The person leans on a wall in a street at night.",
)


def models_of(settings: PipelineSettings, root: Path) -> Models | None:
    """The models of a configuration's chain; None for the chain that has none."""
    if settings.chain == "world":
        return WorldModels(root)
    if settings.chain == "small" and settings.small is not None:
        return PictureModels(root, SmallKit(settings.small.mediapipe))
    if settings.chain == "gpu" and settings.gpu is not None:
        return PictureModels(root, GpuKit(settings.gpu), instructions=_INSTRUCTIONS)
    return None


def stages_of(settings: PipelineSettings, root: Path) -> tuple[Stage, ...]:
    """The stages of a configuration; `root` is the output folder."""
    detector = TransNetShots if settings.shots == "transnetv2" else Shots
    cheap: tuple[Stage, ...] = (Blur(root), Dark(root), Static(root), Motion(root), Letterbox(root), Text(root))
    if settings.text:
        cheap = (*cheap, RecognisedText(root))
    pixels = (Probe(root), detector(root, lengths=settings.lengths), *cheap, Hashes(root))
    models = models_of(settings, root)
    if models is None:
        return pixels
    asked = (Person, Masks, Poses, TargetFrame, Captions)
    references = {
        "edit": EditAndVerify(root, models),
        "other_shot": OtherShot(root, models),
        "self": SelfReference(root),
    }
    return (*pixels, *(stage(root, models) for stage in asked), references[settings.reference])


def sources_of(settings: PipelineSettings, root: Path) -> Sources:
    """The sources that a configuration names, without those that were removed from the output folder."""
    where = settings.sources
    if where.world is not None:
        return WorldSources(where.world, removed_from(root))
    return FolderSources(where.folder or Path(), removed_from(root))


def removed_from(root: Path) -> frozenset[str]:
    """The names of the sources that `remove` took out of an output folder."""
    path = root / "removed.txt"
    return frozenset(lines_of(path)) if path.is_file() else frozenset()


def job_of(settings: PipelineSettings, root: Path, selection: Selection | None = None) -> Job:
    """What a worker needs for a configuration.

    Raises:
        InputError: it is to be used commercially, and a model or the sources may not be; or a rule of the gate has no
            expensive stage behind it.
    """
    stages, sources = stages_of(settings, root), sources_of(settings, root)
    if settings.commercial:
        refuse_non_commercial(cards_of(stages), settings.license)
    gate = tuple(rules_of(settings.gate))
    expensive = max((number for number, stage in enumerate(stages) if stage.expensive), default=0)
    for rule in gate:
        if rule.stage not in [stage.name for stage in stages[:expensive]]:
            raise InputError(
                f"gate.{rule.name}: in the chain {settings.chain} no expensive stage comes after one of its name."
            )
    return Job(
        root,
        sources,
        stages,
        selection or Selection(),
        settings.engine.retries,
        gate=gate,
        row_seconds=settings.engine.row_seconds,
    )
