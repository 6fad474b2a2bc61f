"""`contextanyone generate`: clips from pictures and prompts.

Checked in this order, so that errors appear before slow steps: options, prompts, output names and pictures; then, with
torch, the device, the weights and the prompts' lengths.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, InputError
from ..media.image_io import read_shown
from ..media.video_io import check_name, check_output, save_clip
from ..model_specs import MINIATURE, MODELS, ModelSpec, is_full_size
from ..prompts import TwoStagePrompt
from ..runtime.options import Execution, Video
from ..sampling.guidance import EVERYWHERE, check_interval
from ..shapes import VideoShape
from .clips import (
    Clip,
    Process,
    clips_from_file,
    clips_from_options,
    refuse_collisions,
    refuse_output_among,
    this_process,
)
from .generate_options import AUTO, SMALL_SIZE, generate_parser
from .generate_personal import Person, check_person, hull_of, read_person, with_person
from .generate_pose import AskedCondition, encode_condition, read_condition
from .parsing import COMPONENTS
from .record import is_made, metadata_of, negative_prompt, record_of, settings_of

if TYPE_CHECKING:
    from ..model.condition import VideoCondition
    from .record import Pipeline


@dataclass(frozen=True)
class Request:
    """A parsed command, checked as far as possible without torch; `clips` is the share of this process."""

    spec: ModelSpec
    options: argparse.Namespace
    execution: Execution
    process: Process
    clips: list[Clip]
    pictures: list[NDArray[np.uint8]]
    condition: AskedCondition
    person: Person | None


@dataclass(frozen=True)
class Inputs:
    """What is made once for all clips: the references as the pipeline takes them, pose, start frame, and the hull of
    the pose, (t, h, w)."""

    references: Any
    condition: VideoCondition | None
    hull: NDArray[np.float32] | None


def generate(argv: Sequence[str]) -> int:
    """Run the command; each finished clip prints two lines to stdout: the paths of the video and its contact sheet.

    Raises: InputError or CheckpointError for a request that cannot be met; OSError if the disk is full.
    """
    request = read_request(argv)
    if not request.clips:
        _note(f"process {request.process.rank} of {request.process.count} has no clip to make")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    pipeline = _load(request)
    _check_prompts(pipeline, request)
    if not request.pictures and request.spec.references:
        _note("no --reference is given: plain text to video")
    _warn_of_other_domains(pipeline, request)
    _warn_of_backgrounds(request)
    _warn_of_mismatches(pipeline, request)
    record = record_of(pipeline, request.options, request.person)
    clips = _unfinished(request, record)
    if clips:
        prompts = [TwoStagePrompt(clip.first, clip.later) for clip in clips]
        pictures = bool(request.options.reference)
        pipeline.encode_ahead(prompts, negative_prompt(pipeline, request.options), pictures=pictures)
        references = _encode_references(pipeline, request)
        condition = encode_condition(pipeline, request.condition, request.options.size)
        inputs = Inputs(references, condition, hull_of(request.person, request.condition, pipeline.config.pose_style))
    for clip in clips:
        sheet = _make(pipeline, request, clip, inputs, record)
        sys.stdout.write(f"{clip.out}\n{sheet}\n")
        sys.stdout.flush()
    return 0


def read_request(argv: Sequence[str]) -> Request:
    """Parse the options and check prompts, names and pictures.

    Raises: InputError.
    """
    options = generate_parser().parse(argv)
    spec = MODELS[options.model] if options.model != AUTO else _model_by_name(options.weights)
    spec.check(
        guidance=options.guidance,
        references=len(options.reference),
        emphasis=options.emphasis,
        interval=options.guidance_interval is not None,
        condition=options.pose is not None or options.start_frame is not None,
    )
    check_interval(options.guidance_interval or EVERYWHERE)
    if options.reference_scale is not None and (options.guidance or spec.guidances[0]) != "dual":
        raise InputError("--reference-scale belongs to --guidance dual; add that, or leave it out.")
    person = read_person(options, spec)
    execution = _execution(options)
    execution.check(spec)
    if options.prompts is not None:
        if options.later:
            raise InputError("--later and --prompts exclude each other; put the later prompts into the file.")
        clips = clips_from_file(options.prompts, options.first, options.seed, options.out)
    else:
        check_name(options.out)
        clips = clips_from_options(options.first, options.later, options.seed, options.out)
    read = [
        *options.reference,
        *([options.prompts] if options.prompts else []),
        *(lora.path for lora in execution.loras),
    ]
    posed = (options.pose, options.pose_body, options.pose_models, options.start_frame)
    read += [path for path in posed if path is not None]
    process = this_process(os.environ)
    share = process.share(clips)
    for clip in share:
        if not (options.resume and clip.out.exists()):
            check_output(clip.out)
        refuse_output_among(clip.out, [options.pose, options.pose_body])
    refuse_collisions(clips, [*read, *_weight_files(options.weights)])
    pictures = [read_shown(path) for path in options.reference]
    return Request(spec, options, execution, process, share, pictures, read_condition(options), person)


def _model_by_name(folder: Path) -> ModelSpec:
    """The model that the transformer in a folder is by its header and names."""
    from ..weights.locate import model_of, need_component
    from ..weights.recognition import recognise

    found = recognise(need_component(folder, "transformer"))
    spec = model_of(found)
    if spec.name == "wan":
        _note(
            f"--model auto: no name says which model {found.path} is, so it is taken for plain Wan 2.1; if it is "
            "another, say --model phantom, refalign or bernini"
        )
    else:
        _note(f"--model auto: {found.path} is run as {spec.title}")
    return spec


def _execution(options: argparse.Namespace) -> Execution:
    height, width = options.size
    return Execution(
        loras=(*options.lora, *([] if options.personal is None else [options.personal])),
        attention=options.attention,
        compile=options.compile,
        memory=options.memory,
        step_cache=options.step_cache,
        video=Video(VideoShape(options.frames, height, width), len(options.reference), options.pose is not None),
    )


def _load(request: Request) -> Pipeline:
    options, spec = request.options, request.spec
    if not options.weights.is_dir():
        raise CheckpointError(
            f"--weights {options.weights} is no folder; it must hold the files {', '.join(COMPONENTS)}."
        )
    import torch

    from ..generation.pipeline import ContextAnyonePipeline
    from ..generation.vace import VacePipeline
    from ..runtime.devices import check_device
    from ..runtime.processor import SLOW_HERE, is_slow

    device = check_device(request.process.device(options.device))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the current device, which streams and other packages' kernels use
    dtype = getattr(torch, options.dtype)
    if is_slow(dtype, device):
        _note(f"warning: --dtype is {options.dtype}, {SLOW_HERE}")
    check_person(request.person, options.weights, spec)
    if spec.name == VacePipeline.spec.name:
        return VacePipeline.from_folder(options.weights, device, dtype)
    return ContextAnyonePipeline.from_folder(options.weights, device, dtype, spec, request.execution)


def _check_prompts(pipeline: Pipeline, request: Request) -> None:
    for clip in request.clips:
        pipeline.check_prompt(TwoStagePrompt(clip.first, clip.later), negative_prompt(pipeline, request.options))


def _warn_of_other_domains(pipeline: Pipeline, request: Request) -> None:
    """Warn of pictures out of the model's training domain; they are used nevertheless."""
    from ..generation.domain_check import domain_threshold, round_trip_psnr
    from ..media.image_io import picture_to_images
    from ..weights.locate import need_component
    from ..weights.source import open_source

    options = request.options
    threshold = domain_threshold(open_source(need_component(options.weights, "vae")).metadata)
    if threshold is None:
        return
    for path, picture in zip(options.reference, request.pictures, strict=True):
        quality = round_trip_psnr(pipeline.vae, picture_to_images(picture))
        if quality < threshold:
            _note(
                f"warning: {path} is far from what these weights were trained on (reconstructed at {quality:.1f} dB, "
                f"pictures in the domain at {threshold:.1f} or more); the character will hardly be kept"
            )


def _warn_of_backgrounds(request: Request) -> None:
    """Warn of pictures with a background where the model knows subjects that are cut out."""
    from ..encoders.reference import is_on_white
    from ..media.image_io import picture_to_images

    if not request.spec.cut_out:
        return
    for path, picture in zip(request.options.reference, request.pictures, strict=True):
        if not is_on_white(picture_to_images(picture)):
            _note(
                f"warning: {path} has a background; {request.spec.title} was trained on subjects cut out on white: a "
                "PNG with a transparent background will do"
            )


def _warn_of_mismatches(pipeline: Pipeline, request: Request) -> None:
    """Warn of weights whose name indicates another model, and of the miniature's video size with a full-size model."""
    from ..generation.domain_check import beyond_the_miniature
    from ..weights.locate import misnamed_transformer, need_component
    from ..weights.recognition import recognise

    options = request.options
    found = misnamed_transformer(options.weights, request.spec)
    if found is not None:
        _note(f"warning: {found.path} is by its name {found.family}; it is run as {request.spec.title} all the same")
    if not request.spec.hosted:
        transformer = recognise(need_component(options.weights, "transformer", request.spec))
        if transformer.half:
            _note(f"warning: {transformer.half}; it is run in all of them, and the video will not be good")
    if options.weights == MINIATURE and (beyond := beyond_the_miniature(options.size)):
        _note(f"warning: {beyond}")
    if is_full_size(pipeline.config.text_len) and options.size == SMALL_SIZE:
        _note(
            "128x128, the default, is the miniature's; Wan's models are used with --size 832x480 --frames 81 --steps 50"
        )


def _unfinished(request: Request, record: dict[str, Any]) -> list[Clip]:
    """The clips to make: all, or with --resume those without a finished file from an identical command.

    Raises: InputError if a clip to be made cannot be written.
    """
    if not request.options.resume:
        return request.clips
    left = []
    for clip in request.clips:
        if is_made(clip, record):
            _note(f"{clip.out} is finished")
        else:
            check_output(clip.out)
            left.append(clip)
    return left


def _encode_references(pipeline: Pipeline, request: Request) -> Any:
    """The references in the pipeline's form, encoded once for all clips."""
    from ..media.image_io import picture_to_images

    images = [picture_to_images(picture) for picture in request.pictures]
    return pipeline.encode_references(images, request.options.size)


def _make(pipeline: Pipeline, request: Request, clip: Clip, inputs: Inputs, record: dict[str, Any]) -> Path:
    """Make and write one clip; returns the path of its contact sheet."""
    from tqdm import tqdm

    from ..media.contact_sheet import contact_sheet
    from ..media.image_io import images_to_frames

    settings, prompt = settings_of(pipeline, request.options, clip.seed), TwoStagePrompt(clip.first, clip.later)
    with tqdm(total=settings.steps, desc=clip.out.name, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        result = pipeline.generate(
            inputs.references,
            prompt,
            settings,
            condition=with_person(inputs.condition, inputs.hull, request.person, prompt, pipeline),
            negative=negative_prompt(pipeline, request.options),
            progress=lambda done, _: _advance(bar, done),
        )
        bar.set_postfix_str("done")
    frames = images_to_frames(result.images)
    return save_clip(clip.out, frames, contact_sheet(request.pictures, frames), metadata_of(clip, record))


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
    if done == bar.total:
        bar.set_postfix_str("decoding")


def _weight_files(folder: Path) -> list[Path]:
    """Files in the folder of the weights, which no clip may replace."""
    return [path for path in folder.glob("*") if path.is_file()]


def _note(text: str) -> None:
    sys.stderr.write(f"contextanyone: {text}\n")
