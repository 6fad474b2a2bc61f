"""`contextanyone convert`: the same weights under other names, in another dtype, as one safetensors file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..runtime.options import DTYPES
from .files import refuse_overwriting, tensor_bar, torch_dtype, weight_output
from .parsing import Parser, one_of, regular_path

# The names that `conversion` knows; repeated here because that module imports torch.
NAMINGS = ("original", "comfyui", "diffusers")


def convert(argv: Sequence[str]) -> int:
    """Run the command.

    Raises: InputError, CheckpointError for what cannot be met; OSError for a full disk.
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
        "--out", type=weight_output, required=True, metavar="FILE", help="the file to write, .safetensors"
    )
    parser.add_argument(
        "--naming",
        type=one_of("naming", *NAMINGS),
        help=f"{', '.join(NAMINGS)}; default: the names that this project's files have",
    )
    parser.add_argument(
        "--dtype",
        type=one_of("dtype", *DTYPES, "float8_e4m3fn"),
        help=f"{', '.join(DTYPES)} or float8_e4m3fn (the blocks' matrices; the rest in bfloat16); "
        "default: as stored, bfloat16 for fp8 and GGUF",
    )
    options = parser.parse(argv)
    refuse_overwriting(options.out, [options.file])
    from ..checkpoints.convert import convert as write_converted

    dtype = torch_dtype(options.dtype)
    with tensor_bar(options.out.name) as progress:
        write_converted(options.file, options.out, naming=options.naming, dtype=dtype, progress=progress)
    sys.stdout.write(f"{options.out}\n")
    return 0
