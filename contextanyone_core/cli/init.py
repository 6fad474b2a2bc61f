"""`contextanyone init`: a starting checkpoint for training, from public weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..runtime.options import DTYPES
from .files import refuse_overwriting, tensor_bar, torch_dtype, weight_output
from .parsing import Parser, one_of, regular_path


def init(argv: Sequence[str]) -> int:
    """Run the command.

    Raises: InputError, CheckpointError for what cannot be met; OSError for a full disk.
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
        help="Wan 2.1 T2V or Phantom-Wan: .pth, safetensors, an index of shards, GGUF or a diffusers folder",
    )
    parser.add_argument(
        "--clip-branch",
        type=regular_path,
        metavar="FILE",
        help="a file with Wan's CLIP branch, such as Wan2.1-Fun-1.3B-InP; without it the branch starts anew",
    )
    parser.add_argument(
        "--out", type=weight_output, required=True, metavar="FILE", help="the file to write, .safetensors"
    )
    parser.add_argument("--dtype", type=one_of("dtype", *DTYPES), help=f"{', '.join(DTYPES)}; default: the backbone's")
    options = parser.parse(argv)
    refuse_overwriting(options.out, [options.backbone, options.clip_branch])
    from ..checkpoints.init import write_starting_checkpoint

    with tensor_bar(options.out.name) as progress:
        config = write_starting_checkpoint(
            options.backbone,
            options.out,
            clip_branch=options.clip_branch,
            dtype=torch_dtype(options.dtype),
            progress=progress,
        )
    sys.stdout.write(f"{options.out}\n")
    sys.stderr.write(
        f"contextanyone: width {config.dim}, {config.num_layers} blocks, CLIP branch "
        f"{'of ' + options.clip_branch.name if options.clip_branch else 'new'}, Emphasize-Attention new\n"
    )
    return 0
