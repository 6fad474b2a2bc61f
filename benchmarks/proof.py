"""A whole run at full size on a CPU: the sizes are real, the weights random, so the video is noise.

    nice python -m benchmarks.proof                            # 17 frames of 256x256 in bf16, within 20 GB
    python -m benchmarks.proof --small                         # the same code at tiny sizes

Weight files of the full 1.3B transformer, of Wan's VAE, of CLIP ViT-H and of umT5-XXL at a reduced number of layers are
written to a temporary folder (10 GB) and read by the same pipeline as `contextanyone generate` reads them by.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import GIB, describe_device, describe_versions
from benchmarks.options import make_folders, tell
from benchmarks.random_files import plan_components, write_random_files
from benchmarks.report import gib, markdown_table
from benchmarks.stack import UMT5_LAYERS, StackSizes, full_sizes, small_sizes
from contextanyone_core.atomic_file import write_text
from contextanyone_core.cli.parsing import Parser, frame_count, frame_size, whole
from contextanyone_core.errors import ContextAnyoneError, InputError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationResult, GenerationSettings
from contextanyone_core.media.contact_sheet import contact_sheet
from contextanyone_core.media.image_io import images_to_frames, picture_to_images, read_picture
from contextanyone_core.media.video_io import save_clip
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.processor import SLOW_HERE, is_slow
from training.commands import run_command
from training.speed import peak_memory

NOISE = "The weights are random: the sizes are real, the video is noise."
_PICTURE = Path(__file__).resolve().parents[1] / "assets" / "examples" / "red_hair_striped_shirt.png"
_PROMPT = TwoStagePrompt("A person with long red hair in a striped white shirt.", "The same person is waving.")
_DTYPE, _CPU = torch.bfloat16, torch.device("cpu")
_BESIDE = 3 * GIB  # libraries, activations and the decoding, at 17 frames of 256x256


class TooLargeError(ContextAnyoneError):
    """The run took more memory than it may."""


def prove(options: Namespace) -> dict[str, Any]:
    """Write the weights, load them, make the video, and report time and memory.

    Raises:
        InputError: there is not enough memory free for it.
        TooLargeError: it took more than the limit.
        OSError: the disk is full.
    """
    sizes = small_sizes() if options.small else full_sizes(options.text_layers)
    components = plan_components(sizes)
    parameters = {name: component.parameters for name, component in components.items()}
    if is_slow(_DTYPE, _CPU):
        tell(f"computed in bfloat16, {SLOW_HERE}")
    _require_memory(sum(parameters.values()) * _DTYPE.itemsize + _BESIDE)
    make_folders(options)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="contextanyone-proof-", dir=options.scratch) as name:
        folder = Path(name)
        with _timed(seconds, "write the weights"):
            write_random_files(components, folder, _DTYPE, lambda component: tell(f"  {component}"))
        with _timed(seconds, "load"):
            pipeline = ContextAnyonePipeline.from_folder(folder, _CPU, _DTYPE)
    loaded = peak_memory(_CPU)
    picture = read_picture(_PICTURE)
    height, width = options.size
    settings = GenerationSettings(num_frames=options.frames, width=width, height=height, steps=options.steps)
    with _timed(seconds, "generate"):
        result = pipeline.generate([picture_to_images(picture)], _PROMPT, settings, progress=_followed_steps())
    out: Path = options.out
    frames = images_to_frames(result.images)
    sheet = save_clip(out / "proof.mp4", frames, contact_sheet([picture], frames), {"note": NOISE})
    found = _describe(options, sizes, parameters, result) | {"seconds": seconds}
    found |= {"peak_bytes": peak_memory(_CPU), "peak_bytes_after_loading": loaded, "limit_bytes": options.limit * 10**9}
    found |= {"files": [str(out / "proof.mp4"), str(sheet), str(out / "proof.json")]}
    write_text(out / "proof.json", json.dumps(found, indent=1) + "\n")
    if found["peak_bytes"] > found["limit_bytes"]:
        raise TooLargeError(
            f"The run took {gib(found['peak_bytes'])} GiB, more than the {options.limit} GB that it may."
        )
    return found


def _describe(
    options: Namespace, sizes: StackSizes, parameters: dict[str, int], result: GenerationResult
) -> dict[str, Any]:
    if not bool(result.images.isfinite().all()):
        raise ContextAnyoneError("The video holds NaN or infinite values.")
    return {
        "schema": 1,
        "title": "A whole run at full size",
        "note": NOISE,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": describe_versions(),
        "machine": describe_device(_CPU),
        "options": {name: getattr(options, name) for name in ("frames", "steps", "small")}
        | {"size": list(options.size), "dtype": "bfloat16", "text_layers": sizes.text["num_layers"]},
        "parameters": parameters,
        "video": list(result.images.shape),
    }


def text(found: dict[str, Any]) -> str:
    """The result in words and two tables."""
    rows = [
        (component, f"{count / 1e6:,.1f}", gib(count * _DTYPE.itemsize))
        for component, count in found["parameters"].items()
    ]
    total = sum(found["parameters"].values())
    rows.append(("all", f"{total / 1e6:,.1f}", gib(total * _DTYPE.itemsize)))
    layers = found["options"]["text_layers"]
    times = [(stage, f"{seconds:.1f}") for stage, seconds in found["seconds"].items()]
    return "\n".join(
        [
            NOISE,
            f"The text encoder has {layers} of umT5-XXL's {UMT5_LAYERS} layers; video {found['video']}, "
            f"{found['options']['steps']} steps, bfloat16, {found['machine']['threads']} threads.\n",
            markdown_table(("component", "million parameters", "GiB"), rows),
            markdown_table(("stage", "seconds"), times),
            f"Peak memory {gib(found['peak_bytes'])} GiB ({gib(found['peak_bytes_after_loading'])} after loading), "
            f"allowed {found['limit_bytes'] / GIB:.2f}.\n",
            *found["files"],
            "",
        ]
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    tell(stage)
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began


def _followed_steps() -> Any:
    began = time.perf_counter()

    def follow(done: int, of: int) -> None:
        tell(f"  step {done} of {of} after {time.perf_counter() - began:.0f} s")

    return follow


def _require_memory(needed: int) -> None:
    """Refuse a run that would crowd out what else runs here; where the system does not tell, go on."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), needed)
    if free < needed:
        raise InputError(
            f"{gib(free)} GiB of memory are free and about {gib(needed)} are needed; give umT5 fewer --text-layers."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 the disk is full, 2 it cannot be or took too much."""
    return run_command("benchmarks.proof", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    parser = Parser("benchmarks.proof", __doc__ or "")
    add = parser.add_argument
    add("--small", action="store_true", help="tiny networks: shows that everything runs")
    add("--frames", type=frame_count, default=17, help="4k + 1 (17)")
    add("--size", type=frame_size, default=(256, 256), metavar="WIDTHxHEIGHT", help="multiples of 16 (256x256)")
    add("--steps", type=whole(1, 1000), default=2, help="denoising steps (2)")
    add("--text-layers", type=whole(1, UMT5_LAYERS), default=4, help=f"of umT5-XXL's {UMT5_LAYERS} (4)")
    add("--limit", type=whole(1, 1000), default=20, metavar="GB", help="the most memory that it may take (20)")
    add("--scratch", type=Path, metavar="FOLDER", help="where the weights are meanwhile (the system's own)")
    add("--out", type=Path, default="outputs/proof", metavar="FOLDER", help="for video and numbers (outputs/proof)")
    sys.stdout.write(text(prove(parser.parse(argv))))


if __name__ == "__main__":
    sys.exit(main())
