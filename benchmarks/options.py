"""Command-line options that the benchmarks share."""

from __future__ import annotations

import argparse
import re
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.machine import describe_device, describe_versions
from benchmarks.steps import Case
from contextanyone_core.cli.parsing import Parser, device_name, frame_count, frame_size, one_of, whole
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.runtime.devices import check_device
from contextanyone_core.runtime.kernels import make_attention
from contextanyone_core.runtime.options import ATTENTIONS, DTYPES
from training.commands import output_folder

SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
MODES = ("eager", "compiled")
_MOST_REFERENCES = 8


def add_shared(parser: Parser, repeats: int, out: str) -> None:
    """Add the options that every benchmark has."""
    add = parser.add_argument
    add("--device", type=device_name, default="cuda", help="cuda (default), cuda:1, cpu")
    add("--dtype", type=one_of("dtype", *DTYPES), default="bfloat16", help=f"{', '.join(DTYPES)} (bfloat16)")
    add("--small", action="store_true", help="tiny networks and sizes: shows that everything runs, measures nothing")
    add("--size", type=frame_size, metavar="WIDTHxHEIGHT", help="multiples of 16 (832x480; 32x32 with --small)")
    add("--repeats", type=whole(1, 1000), default=repeats, help=f"measured rounds ({repeats})")
    add("--attention", type=one_of("attention", *ATTENTIONS), default="sdpa", help="of all networks (sdpa)")
    add("--sdpa", type=one_of("kernel", *SDPA), help=f"which kernel sdpa uses: {', '.join(SDPA)} (torch's own choice)")
    add("--out", type=Path, default=out, metavar="FOLDER", help=f"for the JSON, the table and the plot ({out})")


def make_folders(options: argparse.Namespace) -> None:
    """Make the folders of --out and --scratch: after the other checks, before anything is measured.

    Raises:
        InputError: one cannot be made or written to.
    """
    for option in ("out", "scratch"):
        folder: Path | None = getattr(options, option, None)
        if folder is not None:
            output_folder(f"--{option}", folder)


def case_sizes(text: str) -> tuple[int, int]:
    """Parse FRAMESxREFERENCES, such as 81x1."""
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,2})", text)
    if match is None or not 1 <= int(match[2]) <= _MOST_REFERENCES:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is given; FRAMESxREFERENCES is needed with 1 to {_MOST_REFERENCES} references, such as 81x1"
        )
    return frame_count(match[1]), int(match[2])


def network_config(*, small: bool) -> ContextAnyoneConfig:
    """Config of the networks: Wan 2.1 1.3B with our new layers, or the smallest with all components."""
    return replace(ContextAnyoneConfig.tiny(), text_len=64) if small else ContextAnyoneConfig.wan_1_3b()


def make_case(options: argparse.Namespace, frames: int, references: int) -> Case:
    """A case of the requested size."""
    height, width = options.size or ((32, 32) if options.small else (480, 832))
    return Case(frames, width, height, references)


def frame_of_result(options: argparse.Namespace, device: torch.device, title: str, *asked: str) -> dict[str, Any]:
    """The first entries of every JSON; `asked` names the options that it repeats."""
    shared = ("dtype", "small", "repeats", "attention", "sdpa")
    return {
        "schema": 1,
        "title": title,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": describe_versions(),
        "machine": describe_device(device),
        "options": {name: getattr(options, name) for name in (*shared, *asked)},
        "weights": "random",
    }


def chosen_kernel(options: argparse.Namespace) -> AbstractContextManager[object]:
    """A context in which SDPA prefers the kernel of `--sdpa`, with others as fallback (for the VAE)."""
    if options.sdpa is None:
        return nullcontext()
    order = [SDPA[options.sdpa], SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    found: AbstractContextManager[object] = sdpa_kernel(order, set_priority=True)
    return found


def tell(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")


def open_device(options: argparse.Namespace) -> torch.device:
    """The device, after checking that it exists and that the attention works on it.

    Raises:
        InputError: it does not exist, or the attention does not work on it.
        MissingDependencyError: the attention's package is not installed.
    """
    try:
        device = check_device(options.device)
    except InputError as error:
        raise InputError(f"{error} Full size is too much for a CPU: add --small there.") from error
    make_attention(options.attention, device, getattr(torch, options.dtype))
    return device
