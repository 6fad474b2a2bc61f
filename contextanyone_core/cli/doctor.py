"""`contextanyone doctor`: what this machine has, and which models fit its GPU at which sizes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .parsing import Parser, package_version

if TYPE_CHECKING:
    from ..runtime.fits import Fit

_GIB = 1 << 30
_LARGEST = 4096.0
_VERSION = re.compile(r"__version__\s*=\s*[\"']([0-9][0-9A-Za-z.+-]*)[\"']")
_ADVICE = (
    "GiB is the peak of the GPU by arithmetic, in bf16, with one reference picture; low keeps the matrices in fp8.",
    "RAM is what the weights take of the computer's memory at most. ComfyUI moves weights by itself, as balanced or",
    "low do, and loads less where it must. generate picks the mode by itself: --memory auto is its default.",
)
_ON_THE_CPU = (
    "Without a GPU the miniature is what runs in seconds (128x128, 17 frames, nothing to download):",
    '  contextanyone generate --reference PICTURE.png --first "..." --later "..." --out out.mp4',
    "In ComfyUI: the workflow 01_miniature_simple. Models of full size take hours a clip on a CPU.",
    "Ask about a card that is not here with --memory-gb 8.",
)


def doctor(argv: Sequence[str]) -> int:
    """Run the command; prints a report to stdout.

    Raises: InputError for a wrong option.
    """
    parser = Parser("contextanyone doctor", "Say what this machine has, and which models fit at which sizes.")
    parser.add_argument(
        "--memory-gb", type=_gigabytes, metavar="GB", help="of another GPU to ask about, such as 8; default: this one's"
    )
    asked: float | None = parser.parse(argv).memory_gb
    free, lines = _machine(asked)
    sys.stdout.write("\n".join([*lines, "", *(_ON_THE_CPU if free is None else _table(free))]) + "\n")
    return 0


def _gigabytes(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) and 0 < float(text) <= _LARGEST:
        return float(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is given; gigabytes of a GPU are needed, such as 8 or 24")


def _machine(asked: float | None) -> tuple[int | None, list[str]]:
    """Bytes of a GPU that models can use, None without one, and the lines that describe the machine."""
    import torch

    from ..runtime.devices import free_bytes
    from ..runtime.fits import CONTEXT_BYTES

    found = torch.cuda.is_available()
    device, memory, free = _without_cuda(), "", None
    if found:
        properties = torch.cuda.get_device_properties(0)
        free = free_bytes(torch.device("cuda", 0))
        device, memory = f"cuda:0, {properties.name}", f"{properties.total_memory / _GIB:.1f} GiB"
        memory += f", {(free or 0) / _GIB:.1f} free"
    if asked is not None:
        free = max(int(asked * _GIB) - CONTEXT_BYTES, 0)
        memory = f"{asked:g} GiB as asked, {free / _GIB:.1f} of them for models"
    comfyui = find_comfyui()
    rows = {
        "device": device,
        "memory": memory or "-",
        "torch": f"{package_version('torch')}, {'with' if torch.version.cuda else 'without'} CUDA",
        "ComfyUI": "not found; COMFYUI_PATH may name its folder" if comfyui is None else " in ".join(comfyui),
    }
    return free, [f"{name:<9}{value}" for name, value in rows.items()]


def _without_cuda() -> str:
    import torch

    from ..runtime.devices import BUILT_WITHOUT, sees_cards

    for name, there in (("mps", torch.backends.mps.is_available()), ("xpu", torch.xpu.is_available())):
        if there:
            return f"{name}; generate takes it with --device {name}, and its memory is not measured here"
    return "cpu, no GPU found" + ("" if sees_cards() else f": {BUILT_WITHOUT}")


def find_comfyui() -> tuple[str, str] | None:
    """Version and folder of a ComfyUI: of COMFYUI_PATH, around this pack in `custom_nodes`, or in the home folder."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named).expanduser()] if named else [Path(__file__).resolve().parents[4], Path.home() / "ComfyUI"]
    for folder in places:
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return _comfyui_version(folder), str(folder)
    return None


def _comfyui_version(folder: Path) -> str:
    try:
        match = _VERSION.search((folder / "comfyui_version.py").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        match = None
    return match[1] if match else "of unknown version"


def _table(free: int) -> Iterator[str]:
    from ..runtime.fits import fits

    yield f"{'model':<20}{'size':<14}{'--memory':<11}{'GiB':>6}{'RAM':>7}"
    for fit in fits(free):
        yield _row(fit)
    yield ""
    yield from _ADVICE


def _row(fit: Fit) -> str:
    name = f"{fit.spec.title} {fit.width}"
    mode = fit.mode or "none fits"
    host = f"{fit.host / _GIB:.1f}" if fit.host else "-"
    return f"{name:<20}{fit.shape!s:<14}{mode:<11}{fit.peak / _GIB:>6.1f}{host:>7}"
