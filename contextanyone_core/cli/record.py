"""The settings of a clip from the options of `generate`, and the generation record stored in every clip."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..media.video_io import contact_path, read_metadata
from ..model_specs import ModelSpec
from .clips import Clip
from .generate_personal import Person, person_record
from .generate_pose import condition_record, file_record, pose_window
from .parsing import COMPONENTS, package_version

if TYPE_CHECKING:
    from ..generation.pipeline import ContextAnyonePipeline, GenerationSettings
    from ..generation.vace import VacePipeline

    Pipeline = ContextAnyonePipeline | VacePipeline


def negative_prompt(pipeline: Pipeline, options: argparse.Namespace) -> str:
    """The negative prompt of the run: as given, else the model's default."""
    return pipeline.own_negative if options.negative is None else str(options.negative)


def settings_of(pipeline: Pipeline, options: argparse.Namespace, seed: int) -> GenerationSettings:
    """The settings of one clip from the options.

    Raises: InputError for a number out of range.
    """
    from ..generation.pipeline import GenerationSettings
    from ..sampling.guidance import EVERYWHERE, make_guidance

    height, width = options.size
    low, high = options.guidance_interval or EVERYWHERE
    guidance = make_guidance(
        options.guidance or pipeline.spec.guidances[0],
        pipeline.config,
        guidance_scale=options.guidance_scale,
        reference_scale=options.reference_scale,
        interval=(low, high),
    )
    return GenerationSettings(
        num_frames=options.frames,
        width=width,
        height=height,
        steps=options.steps,
        seed=seed,
        sampler=options.sampler,
        shift=options.shift,
        guidance=guidance,
        emphasis=1.0 if options.emphasis is None else options.emphasis,
        pose_strength=1.0 if options.pose_strength is None else options.pose_strength,
        pose_window=pose_window(options),
    )


def record_of(pipeline: Pipeline, options: argparse.Namespace, person: Person | None) -> dict[str, Any]:
    """The part of the record that all clips of a run share: effective settings, versions, hashes of the files read."""
    import torch

    from ..weights.file_hash import sha256_of

    execution = pipeline.execution
    settings = asdict(settings_of(pipeline, options, options.seed))
    del settings["seed"], settings["pose_strength"], settings["pose_window"]  # they stand beside the pose's name
    settings |= {"guidance": {"name": options.guidance or pipeline.spec.guidances[0]} | settings["guidance"]}
    settings |= {"shift": options.shift or pipeline.config.shift, "gap": pipeline.config.gap}
    if not pipeline.spec.emphasis:  # neither is used
        del settings["emphasis"], settings["gap"]
    return {
        "generator": "contextanyone",
        "model": pipeline.spec.name,
        "negative": negative_prompt(pipeline, options),
        "settings": settings | {"device": options.device, "dtype": options.dtype},
        "references": [file_record(path) for path in options.reference],
        "weights": _weights(options.weights, pipeline.spec),
        "execution": {name: getattr(execution, name) for name in ("attention", "compile", "memory", "step_cache")},
        "loras": [
            {"name": lora.path.name, "sha256": sha256_of(lora.path), "strength": lora.strength}
            for lora in execution.loras
        ],
        **condition_record(options),
        **person_record(person),
        "versions": {
            "contextanyone": package_version(),
            "torch": str(torch.__version__),
            "diffusers": package_version("diffusers"),
            "python": platform.python_version(),
        },
    }


def metadata_of(clip: Clip, record: dict[str, Any]) -> dict[str, Any]:
    """The generation record of one clip."""
    return record | {"first": clip.first, "later": clip.later, "seed": clip.seed}


def is_made(clip: Clip, record: dict[str, Any]) -> bool:
    """Whether the clip and its sheet exist with this record: the same weights, pictures, settings and versions.

    Clips are written atomically, so one that can be read is complete.
    """
    if not contact_path(clip.out).is_file():
        return False
    try:
        found = read_metadata(clip.out)
    except InputError:
        return False
    return bool(found == json.loads(json.dumps(metadata_of(clip, record))))


def _weights(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """SHA-256 of every weight file of the model's components, each shard included, by its path in the folder."""
    from ..weights.container import open_container
    from ..weights.file_hash import sha256_of
    from ..weights.locate import find_component

    found = [find_component(folder, component, spec) for component in COMPONENTS]
    held = {tensor.file for path in found if path is not None for tensor in open_container(path).tensors.values()}
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in sorted(held)}
