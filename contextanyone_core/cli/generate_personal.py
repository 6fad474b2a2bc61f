"""`contextanyone generate --personal`: a file trained on one person, and where in the video that person is."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, InputError
from ..model_specs import ModelSpec
from ..pose.drawing import STYLES
from ..pose.hull import person_hull
from ..prompts import TwoStagePrompt
from .generate_pose import AskedCondition

if TYPE_CHECKING:
    from ..generation.pipeline import ContextAnyonePipeline
    from ..generation.vace import VacePipeline
    from ..model.condition import VideoCondition
    from ..weights.personal_file import PersonalFile

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Person:
    """The person of `--personal`: the file, and what its header says."""

    path: Path
    stated: PersonalFile


def read_person(options: argparse.Namespace, spec: ModelSpec) -> Person | None:
    """Read the header of `--personal`, and say how the person is called.

    Raises: InputError or CheckpointError if it is no personal file, or the model is not on our transformer.
    """
    if options.personal is None:
        return None
    if spec.hosted:
        raise InputError(f"--personal is for the models on our transformer; with --model {spec.name} leave it out.")
    from ..generation.personal import introduction
    from ..weights.personal_file import read_personal_file

    path: Path = options.personal.path
    person = Person(path, read_personal_file(path))
    _LOG.warning(introduction(path.name, person.stated))
    return person


def check_person(person: Person | None, folder: Path, spec: ModelSpec) -> None:
    """Check from the headers that a personal file fits the transformer in a folder; another base is logged.

    Raises: CheckpointError if the base has another size.
    """
    if person is None:
        return
    from ..generation.personal import other_base, require_fit
    from ..weights.file_hash import sha256_of
    from ..weights.locate import need_component
    from ..weights.safetensors_file import read_header
    from ..weights.source import open_source

    base = need_component(folder, "transformer", spec)
    lora = {name: tensor.shape for name, tensor in read_header(person.path).tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in open_source(base).tensors.items()}
    require_fit(person.path.name, lora, shapes)
    try:
        told = other_base(person.path.name, person.stated, sha256_of(base)) if base.is_file() else ""
    except OSError as error:
        raise CheckpointError(f"{base} cannot be read: {error.strerror}.") from error
    if told:
        _LOG.warning(told)


def hull_of(person: Person | None, asked: AskedCondition, pose_style: str) -> NDArray[np.float32] | None:
    """Where the person of a clip is, (t, h, w), by the poses it follows; None without a person or poses."""
    if person is None or asked.pose is None:
        return None
    return person_hull(asked.pose.poses, STYLES[pose_style])


def with_person(
    condition: VideoCondition | None,
    hull: NDArray[np.float32] | None,
    person: Person | None,
    prompt: TwoStagePrompt,
    pipeline: ContextAnyonePipeline | VacePipeline,
) -> VideoCondition | None:
    """The condition of one clip with the person's regions; a prompt that does not call the person is logged."""
    if person is None:
        return condition
    from ..generation.personal import named_rows, person_regions

    rows, told = named_rows(pipeline.text_encoder.split(prompt.video_text), person.stated)
    if told:
        _LOG.warning(told)
    if condition is None or hull is None or not rows:
        return condition
    return replace(condition, regions=person_regions(hull, rows))


def person_record(person: Person | None) -> dict[str, Any]:
    """The entry of a clip's metadata for the person, whose file is among the LoRAs; nothing where there is none."""
    return {} if person is None else {"personal": {"name": person.path.name, "trigger": person.stated.trigger}}
