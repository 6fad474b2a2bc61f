"""The options of `contextanyone generate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model_specs import MINIATURE, MODELS
from ..runtime.options import ATTENTIONS, DTYPES, MEMORIES, LoraFile
from ..sampling.names import GUIDANCES, SAMPLERS
from .generate_pose import add_pose_options
from .parsing import (
    MAX_SEED,
    Parser,
    any_text,
    device_name,
    file_path,
    frame_count,
    frame_size,
    one_of,
    output_path,
    prompt_text,
    real,
    whole,
)

AUTO = "auto"
SMALL_SIZE = (128, 128)
"""Default size, that of the miniature."""
MAX_SCALE = 100.0
PEFT_FILE = "adapter_model.safetensors"


def lora_file(text: str) -> LoraFile:
    """A type for `add_argument`: FILE or FILE:STRENGTH; of a PEFT adapter, its folder or its file."""
    before, colon, after = text.rpartition(":")
    whole = _lora_path(text)
    if not colon or whole.is_file() or not _lora_path(before).is_file():  # a file name may contain a colon
        if not whole.is_file():
            raise argparse.ArgumentTypeError(f"{text} is no file; give a LoRA as FILE or FILE:STRENGTH")
        return LoraFile(whole)
    return LoraFile(_lora_path(before), real(-MAX_SCALE, MAX_SCALE)(after))


def _lora_path(text: str) -> Path:
    path = Path(text)
    return path / PEFT_FILE if (path / PEFT_FILE).is_file() else path


def generate_parser() -> Parser:
    """The parser of `contextanyone generate`."""
    parser = Parser("contextanyone generate", "Make videos of the character in a picture.")
    add = parser.add_argument
    add(
        "--reference",
        type=file_path,
        action="append",
        default=[],
        metavar="PICTURE",
        help="the character; may be repeated",
    )
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
        type=file_path,
        metavar="FILE.jsonl",
        help='several clips, one a line: {"first": ..., "later": ..., "out": ..., "seed": ...}; --out is then a folder',
    )
    add(
        "--out",
        type=output_path,
        required=True,
        help=".mp4, .gif or .webp; without an ending a folder of PNG, a new or empty one; an existing file is replaced",
    )
    add("--resume", action="store_true", help="skip clips that the same command has made before")
    _add_sampling(parser)
    add_pose_options(parser)
    add(
        "--model",
        type=one_of("model", AUTO, *MODELS),
        default="contextanyone",
        help=f"{', '.join(MODELS)} (contextanyone), or auto: by the name of the file or its folder",
    )
    add(
        "--weights",
        type=file_path,
        default=MINIATURE,
        metavar="FOLDER",
        help="the model's files (the shipped miniature)",
    )
    _add_execution(parser)
    return parser


def _add_sampling(parser: Parser) -> None:
    """Size, noise schedule and guidance."""
    add = parser.add_argument
    add("--frames", type=frame_count, default=17, help="4k + 1 (17)")
    add("--size", type=frame_size, default=SMALL_SIZE, metavar="WIDTHxHEIGHT", help="multiples of 16 (128x128)")
    add("--steps", type=whole(1, 1000), default=20, help="denoising steps (20)")
    add("--seed", type=whole(0, MAX_SEED), default=0, help="seed of the noise, the same for every clip (0)")
    add(
        "--guidance", type=one_of("guidance", *GUIDANCES), help="cfg or dual (cfg; dual for phantom, refalign, bernini)"
    )
    add("--guidance-scale", type=real(0, MAX_SCALE), metavar="S", help="weight of the prompt (the model's own)")
    add(
        "--reference-scale",
        type=real(0, MAX_SCALE),
        metavar="S",
        help="weight of the picture, dual only (the model's own)",
    )
    add(
        "--guidance-interval",
        type=real(0, 1),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels (sigmas) between which a step is guided; elsewhere one pass (0 1: every step)",
    )
    add(
        "--emphasis",
        type=real(0, MAX_SCALE),
        metavar="E",
        help="strength of Emphasize-Attention: 1 as trained (default), 0 none",
    )
    add("--sampler", type=one_of("sampler", *SAMPLERS), default="unipc", help=f"{', '.join(SAMPLERS)} (unipc)")
    add("--shift", type=real(0, MAX_SCALE, above=True), help="shift of the noise schedule (the model's own)")
    add("--negative", type=any_text, metavar="TEXT", help="negative prompt (the model's own)")


def _add_execution(parser: Parser) -> None:
    """Execution options: how the model is run."""
    add = parser.add_argument
    add(
        "--lora",
        type=lora_file,
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="added to the weights, 1 as trained (default); may be repeated",
    )
    add(
        "--personal",
        type=lora_file,
        metavar="FILE[:STRENGTH]",
        help="a file trained on one person: a LoRA whose name and class the prompt calls; with --pose, only the person "
        "is drawn by them",
    )
    add(
        "--attention",
        type=one_of("attention", *ATTENTIONS),
        default="sdpa",
        help="sdpa (default), torch's own; flash or sage, where installed; auto: flash where it can work",
    )
    add("--compile", action="store_true", help="compile the blocks first; worth it for long or many clips")
    add(
        "--memory",
        type=one_of("memory", *MEMORIES),
        default="auto",
        help="high: everything on the card; balanced: each component while it works; low: block by block, in fp8; "
        "auto (default): the first that fits",
    )
    add(
        "--step-cache",
        type=real(0, 1, above=True),
        metavar="T",
        help="skip the blocks of a pass whose first block changed by less than T, such as 0.1 (off)",
    )
    add("--device", type=device_name, default="cpu", help="cpu (default), cuda, cuda:1, mps, xpu")
    add("--dtype", type=one_of("dtype", *DTYPES), default="float32", help=f"{', '.join(DTYPES)} (float32)")
