"""`contextanyone generate`: pictures and prompts become clips.

In this order, so that a mistake is told before anything slow happens: options, prompts, output names, pictures; then
torch, the device, the weights, the prompts' lengths; then the work.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cli_clips import Clip, clips_from_file, clips_from_options, refuse_collisions
from .cli_options import (
    MAX_SEED,
    PARTS,
    Parser,
    any_text,
    device_name,
    frame_count,
    frame_size,
    one_of,
    package_version,
    prompt_text,
    real,
    whole,
)
from .errors import CheckpointError, InputError
from .kinds import MODELS, ModelKind
from .pictures import read_picture
from .video import check_name, check_output, save_clip

if TYPE_CHECKING:
    from .hosts.vace import VacePipeline
    from .pipeline import ContextAnyonePipeline, GenerationSettings

    Pipeline = ContextAnyonePipeline | VacePipeline

MINIATURE = Path(__file__).parent / "miniature"
# The names that hosts.schedulers knows; repeated here because that module imports torch.
SAMPLERS = ("euler", "unipc", "dpmpp_2m")
DTYPES = ("float32", "bfloat16", "float16")
MAX_SCALE = 100.0


@dataclass(frozen=True)
class Request:
    """What a command asks for, checked as far as possible without torch."""

    kind: ModelKind
    options: argparse.Namespace
    clips: list[Clip]
    pictures: list[NDArray[np.uint8]]


def generate(argv: Sequence[str]) -> int:
    """Run the command; every finished clip puts two lines on stdout: the video's path and the contact sheet's.

    Raises: InputError, CheckpointError for what cannot be met; OSError if the disk is full.
    """
    request = read_request(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    pipeline = _load(request)
    _check_prompts(pipeline, request)
    if not request.pictures and request.kind.references:
        _note("no --reference is given: plain text to video")
    _warn_of_strangers(pipeline, request)
    shared = _shared_metadata(pipeline, request.options)
    for clip in request.clips:
        sheet = _make(pipeline, request, clip, shared)
        sys.stdout.write(f"{clip.out}\n{sheet}\n")
        sys.stdout.flush()
    return 0


def read_request(argv: Sequence[str]) -> Request:
    """Parse the options and check prompts, names and pictures.

    Raises: InputError.
    """
    options = _parser().parse(argv)
    kind = MODELS[options.model]
    kind.check(guidance=options.guidance, references=len(options.reference), emphasis=options.emphasis)
    if options.reference_scale is not None and (options.guidance or kind.guidances[0]) != "dual":
        raise InputError("--reference-scale belongs to --guidance dual; add that, or leave it out.")
    if options.prompts is not None:
        if options.later:
            raise InputError("--later and --prompts exclude each other; put the later prompts into the file.")
        clips = clips_from_file(options.prompts, options.first, options.seed, options.out)
    else:
        check_name(options.out)
        clips = clips_from_options(options.first, options.later, options.seed, options.out)
    read = [*options.reference, *([options.prompts] if options.prompts else [])]
    for clip in clips:
        check_output(clip.out)
    refuse_collisions(clips, [*read, *_weight_files(options.weights)])
    return Request(kind, options, clips, [read_picture(path) for path in options.reference])


def _parser() -> Parser:
    parser = Parser("contextanyone generate", "Make videos of the character in a picture.")
    add = parser.add_argument
    add("--reference", type=Path, action="append", default=[], metavar="PICTURE", help="the character; may be repeated")
    add("--first", type=prompt_text, metavar="TEXT", help="how the first frame looks: who, where")
    add(
        "--later",
        type=prompt_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="what happens then; repeat it for several clips, numbered OUT-1, OUT-2",
    )
    add(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help='several clips, one a line: {"first": ..., "later": ..., "out": ..., "seed": ...}; --out is then a folder',
    )
    add(
        "--out",
        type=Path,
        required=True,
        help=".mp4, .gif or .webp; without an ending a folder of PNG; what exists is replaced",
    )
    add("--frames", type=frame_count, default=17, help="4k + 1 (17)")
    add("--size", type=frame_size, default=(128, 128), metavar="WIDTHxHEIGHT", help="multiples of 16 (128x128)")
    add("--steps", type=whole(1, 1000), default=20, help="denoising steps (20)")
    add("--seed", type=whole(0, MAX_SEED), default=0, help="of the noise, the same for every clip (0)")
    add("--guidance", type=one_of("guidance", "cfg", "dual"), help="cfg or dual (cfg; Phantom's own is dual)")
    add("--guidance-scale", type=real(0, MAX_SCALE), metavar="S", help="how much the prompt counts (the model's own)")
    add(
        "--reference-scale",
        type=real(0, MAX_SCALE),
        metavar="S",
        help="how much the picture counts, dual only (the model's own)",
    )
    add("--emphasis", type=real(0, MAX_SCALE), metavar="E", help="of the picture: 1 as trained (default), 0 none")
    add("--sampler", type=one_of("sampler", *SAMPLERS), default="unipc", help=f"{', '.join(SAMPLERS)} (unipc)")
    add("--shift", type=real(0, MAX_SCALE, above=True), help="of the noise schedule (the model's own)")
    add("--negative", type=any_text, metavar="TEXT", help="what shall not be seen (the model's own)")
    add("--model", type=one_of("model", *MODELS), default="contextanyone", help=f"{', '.join(MODELS)} (contextanyone)")
    add("--weights", type=Path, default=MINIATURE, metavar="FOLDER", help="the model's files (the shipped miniature)")
    add("--device", type=device_name, default="cpu", help="cpu (default), cuda, cuda:1, mps, xpu")
    add("--dtype", type=one_of("dtype", *DTYPES), default="float32", help=f"{', '.join(DTYPES)} (float32)")
    return parser


def _load(request: Request) -> Pipeline:
    options, kind = request.options, request.kind
    if not options.weights.is_dir():
        raise CheckpointError(f"--weights {options.weights} is no folder; it must hold the files {', '.join(PARTS)}.")
    import torch

    from .hosts.vace import VacePipeline
    from .pipeline import ContextAnyonePipeline, check_device

    check_device(options.device)
    dtype = getattr(torch, options.dtype)
    if kind.name == VacePipeline.kind.name:
        return VacePipeline.from_folder(options.weights, options.device, dtype)
    return ContextAnyonePipeline.from_folder(options.weights, options.device, dtype, kind)


def _negative(pipeline: Pipeline, options: argparse.Namespace) -> str:
    return pipeline.own_negative if options.negative is None else str(options.negative)


def _check_prompts(pipeline: Pipeline, request: Request) -> None:
    from .prompts import TwoStagePrompt

    for clip in request.clips:
        pipeline.check_prompt(TwoStagePrompt(clip.first, clip.later), _negative(pipeline, request.options))


def _warn_of_strangers(pipeline: Pipeline, request: Request) -> None:
    """Tell of pictures that are far from what the model was trained on; they are used all the same."""
    from .checkpoint import open_source
    from .familiarity import familiar_threshold, round_trip_psnr
    from .parts import need_part
    from .pictures import picture_to_images

    options = request.options
    threshold = familiar_threshold(open_source(need_part(options.weights, "vae")).metadata)
    if threshold is None:
        return
    for path, picture in zip(options.reference, request.pictures, strict=True):
        quality = round_trip_psnr(pipeline.vae, picture_to_images(picture), options.size)
        if quality < threshold:
            _note(
                f"warning: {path} is far from what these weights were trained on (redrawn at {quality:.1f} dB, "
                f"familiar pictures have {threshold:.1f} or more); the character will hardly be kept"
            )


def _make(pipeline: Pipeline, request: Request, clip: Clip, shared: dict[str, Any]) -> Path:
    """Make and write one clip; returns the path of its contact sheet."""
    from tqdm import tqdm

    from .contact import contact_sheet
    from .pictures import images_to_frames, picture_to_images
    from .prompts import TwoStagePrompt

    settings = _settings(pipeline, request.options, clip.seed)
    with tqdm(total=settings.steps, desc=clip.out.name, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        result = pipeline.generate(
            [picture_to_images(picture) for picture in request.pictures],
            TwoStagePrompt(clip.first, clip.later),
            settings,
            negative=_negative(pipeline, request.options),
            progress=lambda done, _: _advance(bar, done),
        )
        bar.set_postfix_str("done")
    frames = images_to_frames(result.images)
    metadata = shared | {"first": clip.first, "later": clip.later, "seed": clip.seed}
    return save_clip(clip.out, frames, contact_sheet(request.pictures, frames), metadata)


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
    if done == bar.total:
        bar.set_postfix_str("decoding")


def _settings(pipeline: Pipeline, options: argparse.Namespace, seed: int) -> GenerationSettings:
    from .guidance import make_guidance
    from .pipeline import GenerationSettings

    height, width = options.size
    scales = {"guidance_scale": options.guidance_scale, "reference_scale": options.reference_scale}
    guidance = make_guidance(options.guidance or pipeline.kind.guidances[0], pipeline.config, **scales)
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
    )


def _shared_metadata(pipeline: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    """What is the same for all clips of a run: settings as they took effect, versions, and what exactly was read."""
    import torch

    settings = asdict(_settings(pipeline, options, options.seed))
    del settings["seed"]
    settings |= {"guidance": {"name": options.guidance or pipeline.kind.guidances[0]} | settings["guidance"]}
    settings |= {"shift": options.shift or pipeline.config.shift, "gap": pipeline.config.gap}
    if not pipeline.kind.emphasis:  # neither is heard
        del settings["emphasis"], settings["gap"]
    return {
        "generator": "contextanyone",
        "model": pipeline.kind.name,
        "negative": _negative(pipeline, options),
        "settings": settings | {"device": options.device, "dtype": options.dtype},
        "references": [{"name": path.name, "sha256": _sha256(path)} for path in options.reference],
        "weights": {path.name: _sha256(path) for path in _parts(options.weights, pipeline.kind)},
        "versions": {
            "contextanyone": package_version(),
            "torch": str(torch.__version__),
            "diffusers": package_version("diffusers"),
            "python": platform.python_version(),
        },
    }


def _weight_files(folder: Path) -> list[Path]:
    """What stands in the folder of the weights, which no clip may replace."""
    return [path for path in folder.glob("*") if path.is_file()]


def _parts(folder: Path, kind: ModelKind) -> list[Path]:
    """The files of the parts; a part in a folder of its own counts by each weight file there."""
    from .parts import find_part

    found = [find_part(folder, part, kind.family if part == "transformer" else "") for part in PARTS]
    return [file for part in found if part is not None for file in _files_of(part)]


def _files_of(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors")) if part.is_dir() else [part]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(text: str) -> None:
    sys.stderr.write(f"contextanyone: {text}\n")
