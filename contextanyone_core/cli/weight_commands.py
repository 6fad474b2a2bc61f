"""`contextanyone init` (an initial checkpoint for training) and `convert` (other tensor names, another dtype)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..runtime.options import DTYPES
from ..weights.name_tables import OUTPUT_NAMINGS
from .parsing import Parser, one_of, output_path, regular_path

if TYPE_CHECKING:
    import torch


def init(argv: Sequence[str]) -> int:
    """`contextanyone init`: an initial checkpoint for training, from public weights.

    Raises: InputError or CheckpointError for a request that cannot be met; OSError if the disk is full.
    """
    parser = Parser(
        "contextanyone init",
        "Make a starting checkpoint for training: a public backbone with this model's new parts.\n"
        "Without a picture it generates what the backbone does until it is trained.",
    )
    parser.add_argument(
        "--backbone",
        type=regular_path,
        required=True,
        metavar="FILE",
        help="Wan 2.1 T2V, Phantom-Wan or Wan2.1-Fun-Control: .pth, safetensors, an index of shards, GGUF or a "
        "diffusers folder",
    )
    parser.add_argument(
        "--clip-branch",
        type=regular_path,
        metavar="FILE",
        help="a file with Wan's CLIP branch, such as Wan2.1-Fun-1.3B-InP; without it the branch starts anew",
    )
    parser.add_argument(
        "--condition",
        action="store_true",
        help="add channels for pose and start frame, untrained; Wan2.1-Fun-Control has them already",
    )
    parser.add_argument(
        "--out", type=_weight_output, required=True, metavar="FILE", help="the file to write, .safetensors"
    )
    parser.add_argument("--dtype", type=one_of("dtype", *DTYPES), help=f"{', '.join(DTYPES)}; default: the backbone's")
    options = parser.parse(argv)
    _refuse_overwriting(options.out, [options.backbone, options.clip_branch])
    from ..checkpoints.init import write_starting_checkpoint
    from ..weights.safetensors_file import read_header

    with _tensor_bar(options.out.name) as progress:
        config = write_starting_checkpoint(
            options.backbone,
            options.out,
            clip_branch=options.clip_branch,
            condition=options.condition,
            dtype=_torch_dtype(options.dtype),
            progress=progress,
        )
    sys.stdout.write(f"{options.out}\n")
    made_of = json.loads(read_header(options.out).metadata["made_of"])
    parts = {"CLIP branch": made_of["clip_branch"], "condition channels": made_of.get("condition")}
    said = [f"{part} {_of(source)}" for part, source in parts.items() if source is not None]
    sys.stderr.write(
        f"contextanyone: width {config.dim}, {config.num_layers} blocks, {', '.join(said)}, Emphasize-Attention new\n"
    )
    return 0


def _of(source: str) -> str:
    """Where a part comes from: "new", or of which file."""
    name, _, recognised = source.partition(": ")
    return f"of {name}" if recognised else source


def convert(argv: Sequence[str]) -> int:
    """`contextanyone convert`: one safetensors file with other tensor names or another dtype.

    Raises: InputError or CheckpointError for a request that cannot be met; OSError if the disk is full.
    """
    parser = Parser(
        "contextanyone convert",
        "Write a weight file under other names or in another dtype, as one safetensors file: a transformer of Wan,\n"
        "Phantom or this project, Wan's VAE, umT5 or CLIP ViT-H.",
    )
    parser.add_argument(
        "file", type=regular_path, help="a .pth, safetensors, index of shards, GGUF, or a folder with one model"
    )
    parser.add_argument(
        "--out", type=_weight_output, required=True, metavar="FILE", help="the file to write, .safetensors"
    )
    parser.add_argument(
        "--naming",
        type=one_of("naming", *OUTPUT_NAMINGS),
        help=f"{', '.join(OUTPUT_NAMINGS)}; default: the names that this project's files have",
    )
    parser.add_argument(
        "--dtype",
        type=one_of("dtype", *DTYPES, "float8_e4m3fn"),
        help=f"{', '.join(DTYPES)} or float8_e4m3fn (the blocks' matrices; the rest in bfloat16); "
        "default: as stored, bfloat16 for fp8 and GGUF",
    )
    options = parser.parse(argv)
    _refuse_overwriting(options.out, [options.file])
    from ..checkpoints.convert import convert as write_converted

    dtype = _torch_dtype(options.dtype)
    with _tensor_bar(options.out.name) as progress:
        write_converted(options.file, options.out, naming=options.naming, dtype=dtype, progress=progress)
    sys.stdout.write(f"{options.out}\n")
    return 0


def _weight_output(text: str) -> Path:
    """A type for `add_argument`: a .safetensors file in a folder that exists."""
    path = output_path(text)
    if path.suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"{text!r} is given; a name that ends in .safetensors is needed")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder; make it first")
    if path.is_symlink():
        raise argparse.ArgumentTypeError(f"{path} is a link to {path.readlink()}; give the name of the file itself")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise argparse.ArgumentTypeError(f"{path} is {what}; give a file's name")
    return path


def _refuse_overwriting(out: Path, inputs: Sequence[Path | None]) -> None:
    """Refuse an output that would replace an input, a file in an input folder, or a file beside an index of shards.

    Raises: InputError for such an output.
    """
    for path in inputs:
        if path is None:
            continue
        beside = path.name.endswith(".index.json") and out.exists() and out.parent.resolve() == path.parent.resolve()
        if beside or out.resolve() in (path.resolve(), path.resolve() / out.name):
            raise InputError(f"--out {out} would overwrite what is read; give another name.")


def _torch_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name; None for None."""
    import torch

    dtype: torch.dtype | None = None if name is None else getattr(torch, name)
    return dtype


@contextmanager
def _tensor_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields a callback for (tensors written, total)."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[Any] = []

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(tqdm(desc=name, total=total, unit="tensor", file=sys.stderr, dynamic_ncols=True))
                stack.callback(bars[0].close)
            bars[0].update(done - bars[0].n)

        yield advance
