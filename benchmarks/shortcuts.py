"""Time saved and quality lost by approximations on the shipped miniature: step cache by threshold, fp8 storage.

    python -m benchmarks.shortcuts

Each clip is generated from the same picture, prompts and noise without and with each approximation. Times are CPU time
of denoising, which other processes affect little; PSNR compares the frames with those of the exact run.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import describe_versions
from benchmarks.options import tell
from benchmarks.report import markdown_table
from contextanyone_core.atomic_file import write_text
from contextanyone_core.cli.parsing import Parser, frame_count, frame_size, whole
from contextanyone_core.generation.pipeline import MINIATURE, ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.image_io import picture_to_images
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.options import Execution
from training.commands import run_command

THRESHOLDS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
_PICTURES = Path(__file__).parents[1] / "assets" / "examples"
_PROMPTS = (
    TwoStagePrompt("A person with long red hair in a striped white shirt.", "The same person is waving at the beach."),
    TwoStagePrompt("A person in the park on a bright day.", "The same person is walking along the street at night."),
)
_HEADS = ("shortcut", "passes computed", "denoising, s", "speed-up", "PSNR, dB (mean)", "PSNR, dB (worst)")


def measure(options: Namespace) -> dict[str, Any]:
    """Run every approximation on every clip; returns the content of the JSON."""
    executions = {"none": Execution()} | {f"step cache {t:g}": Execution(step_cache=t) for t in THRESHOLDS}
    executions |= {"memory low (fp8)": Execution(memory="low")}
    pictures = sorted(_PICTURES.glob("*.png"))[: options.clips]
    wanted: list[torch.Tensor] = []
    found: dict[str, dict[str, Any]] = {}
    for name, execution in executions.items():
        tell(name)
        pipeline = ContextAnyonePipeline.from_folder(MINIATURE, execution=execution)
        clips = [_make(pipeline, options, picture, index) for index, picture in enumerate(pictures)]
        wanted = wanted or [clip["images"] for clip in clips]
        quality = [_psnr(clip["images"], images) for clip, images in zip(clips, wanted, strict=True)]
        found[name] = {
            "seconds": [clip["seconds"] for clip in clips],
            "computed": sum(clip["computed"] for clip in clips) / sum(clip["passes"] for clip in clips),
            "psnr": quality,
        }
    asked = {"frames": options.frames, "size": options.size, "steps": options.steps, "clips": len(pictures)}
    return {"options": asked, "versions": describe_versions(), "shortcuts": found}


def show(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    plain = sum(result["shortcuts"]["none"]["seconds"])
    rows = []
    for name, item in result["shortcuts"].items():
        spent, quality = sum(item["seconds"]), item["psnr"]
        shown = ["-", "-"] if name == "none" else [f"{np.mean(quality):.1f}", f"{min(quality):.1f}"]
        rows.append([name, f"{item['computed']:.0%}", f"{spent:.1f}", f"{plain / spent:.2f}x", *shown])
    return markdown_table(_HEADS, rows)


def _make(pipeline: ContextAnyonePipeline, options: Namespace, picture: Path, seed: int) -> dict[str, Any]:
    height, width = options.size
    settings = GenerationSettings(num_frames=options.frames, width=width, height=height, steps=options.steps, seed=seed)
    images = picture_to_images(np.asarray(Image.open(picture).convert("RGB")))
    reference = pipeline.dual_encoder.encode(images, settings.size)
    conditions = pipeline.conditions([reference], _PROMPTS[seed % len(_PROMPTS)])
    counts = [0, 0]
    norms = [pipeline.transformer.get_submodule(f"blocks.{index}.norm3") for index in (0, 1)]
    counted = [norm.register_forward_hook(_counter(counts, index)) for index, norm in enumerate(norms)]
    before = time.process_time()
    latents = pipeline.sample_latents(conditions, settings, pipeline.noise([seed], settings))
    seconds = time.process_time() - before
    for handle in counted:
        handle.remove()
    encoded = 1  # the reference stream runs once, through all blocks
    passes, computed = (count - encoded for count in counts)
    return {"images": pipeline.decode(latents), "seconds": seconds, "passes": passes, "computed": computed}


def _counter(counts: list[int], index: int) -> Any:
    def count(*_: object) -> None:
        counts[index] += 1

    return count


def _psnr(images: torch.Tensor, wanted: torch.Tensor) -> float:
    """PSNR in dB; 100 if the frames are equal."""
    error = float(((images - wanted) / 2).square().mean())
    return min(100.0, -10 * math.log10(max(error, 1e-12)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 a wrong option."""
    return run_command("benchmarks.shortcuts", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    parser = Parser("benchmarks.shortcuts", __doc__ or "")
    parser.add_argument("--frames", type=frame_count, default=17, help="of a clip (17)")
    parser.add_argument("--size", type=frame_size, default=(128, 128), metavar="WIDTHxHEIGHT", help="(128x128)")
    parser.add_argument("--steps", type=whole(1, 1000), default=20, help="denoising steps (20)")
    parser.add_argument("--clips", type=whole(1, 100), default=4, help="at most; one for each example picture (4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go too")
    options = parser.parse(argv)
    result = measure(options)
    if options.json is not None:
        write_text(options.json, json.dumps(result, indent=1))
    sys.stdout.write(show(result) + "\n")


if __name__ == "__main__":
    sys.exit(main())
