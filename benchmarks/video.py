"""Time and memory of complete videos: ours, plain Wan, Phantom and VACE, each through its own pipeline.

    python -m benchmarks.video                                 # on a GPU, 832x480x81, 50 steps
    python -m benchmarks.video --device cpu --small            # the same code at tiny sizes

Measured from pictures and prompts to frames: VAE, text and CLIP encoders, all denoising steps, decoding. The weights
are random and stay on the device; loading is not measured.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from benchmarks.measure import Timing, interleave, synchronise
from benchmarks.networks import prepare
from benchmarks.options import (
    add_shared,
    case_sizes,
    chosen_kernel,
    frame_of_result,
    make_case,
    make_folders,
    open_device,
    tell,
)
from benchmarks.ratios import CACHE_SHARE, VIDEO_RATIOS, compare, judged
from benchmarks.report import Bar, case_title, gib, heading, markdown_table, number, ratio_table, write_report
from benchmarks.stack import UMT5_LAYERS, Stacks, full_sizes, small_sizes
from benchmarks.step_case import count_flops
from benchmarks.steps import Case, random_inputs
from contextanyone_core.cli.parsing import Parser, one_of, whole
from contextanyone_core.generation.pipeline import GenerationSettings
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.reference_modes import SeparateStream
from training.commands import run_command

_TITLE = "Time of a whole video"
_VARIANTS = {"contextanyone": "ours", "refalign": "phantom"}
_PROMPT = TwoStagePrompt("A woman with red hair in a park.", "The same woman is waving at the beach at sunset.")
_HEADS = ("model", "seconds", "encode", "a step", "decode", "TFLOP a step", "GiB")


def measure(options: Namespace) -> dict[str, Any]:
    """Measure all requested cases; returns the content of the JSON.

    Raises:
        InputError: the device does not exist, or a folder cannot be made.
    """
    device = open_device(options)
    make_folders(options)
    sizes = small_sizes() if options.small else full_sizes(options.text_layers)
    stacks = Stacks(sizes, device, getattr(torch, options.dtype))
    cases = [
        _measure_case(options, stacks, make_case(options, *size))
        for size in options.cases or [(5, 1) if options.small else (81, 1)]
    ]
    return frame_of_result(options, device, _TITLE, "models", "steps", "compile", "text_layers") | {"cases": cases}


def _measure_case(options: Namespace, stacks: Stacks, case: Case) -> dict[str, Any]:
    pictures = [torch.rand(1, 3, case.height, case.width) * 2 - 1 for _ in range(case.references)]
    videos = {model: _Video(stacks, model, case, pictures, options.steps) for model in options.models}
    torch._dynamo.reset()  # graphs for the shapes of another case
    backend = "eager" if options.small else "inductor"
    prepare(stacks.networks, options.attention, backend if options.compile else None)
    actions: dict[str, Callable[[], object]] = {model: video.run for model, video in videos.items()}
    first: dict[str, Callable[[], object]] = {model: partial(video.run, 2) for model, video in videos.items()}
    if "contextanyone" in videos:
        actions["cache"] = first["cache"] = _cache_maker(stacks, case)
    timings = interleave(actions, options.repeats, stacks.device, lambda name: tell(f"{case}: {name}"), first)
    flops = _count_flops(options, stacks, case)
    models = [_describe(videos[model], timings[model], flops[model]) for model in options.models]
    compared = compare(VIDEO_RATIOS, timings, flops, judge=not options.small)
    return {
        "frames": case.frames,
        "width": case.width,
        "height": case.height,
        "references": case.references,
        "models": models,
        "ratios": compared + _cache_share(timings, judge=not options.small),
    }


class _Video:
    """One model's video, timed stage by stage."""

    def __init__(self, stacks: Stacks, model: str, case: Case, pictures: Sequence[torch.Tensor], steps: int) -> None:
        self.model, self._device, self._steps = model, stacks.device, steps
        self._pipeline = stacks.pipeline(model)
        self._pictures = pictures if MODELS[model].references else []
        self._case = case
        self.weights = stacks.weights(model)
        self.stages: list[dict[str, float]] = []

    def run(self, steps: int | None = None) -> None:
        """Generate the video; with a number of `steps` other than the requested one, stage times are not recorded."""
        case = self._case
        settings = GenerationSettings(
            num_frames=case.frames, width=case.width, height=case.height, steps=steps or self._steps
        )
        marks = [time.perf_counter()]
        self._pipeline.generate(self._pictures, _PROMPT, settings, progress=lambda *_: self._mark(marks))
        self._mark(marks)
        if steps is None:
            self.stages.append(stages(marks))

    def _mark(self, marks: list[float]) -> None:
        synchronise(self._device)
        marks.append(time.perf_counter())


def stages(marks: Sequence[float]) -> dict[str, float]:
    """Seconds of encoding, of the median denoising step, and of decoding.

    Args:
        marks: times of the start, the end of every step (two or more), and the end. The first step's time includes the
            encoding; it is taken to be the median of the other steps.
    """
    begun, *ends, done = marks
    step = statistics.median(b - a for a, b in pairwise(ends))
    return {"encode": max(0.0, ends[0] - begun - step), "step": step, "decode": done - ends[-1]}


def _cache_maker(stacks: Stacks, case: Case) -> Callable[[], object]:
    network: Any = stacks.network("contextanyone")
    inputs = random_inputs(stacks.sizes.transformer, case, stacks.device, stacks.dtype)

    @torch.no_grad()
    def make() -> None:
        SeparateStream(network, inputs.references)

    return make


def _count_flops(options: Namespace, stacks: Stacks, case: Case) -> dict[str, float]:
    """FLOPs of one denoising step of each model."""
    variants = {model: _VARIANTS.get(model, model) for model in options.models}
    counted = count_flops(list(variants.values()), stacks.sizes.transformer, case)
    return {model: float(counted[variant]) for model, variant in variants.items()}


def _describe(video: _Video, timing: Timing, flops: float) -> dict[str, Any]:
    kept = [stage for stage in video.stages if timing.error is None]
    weights = sum(video.weights.values())
    peak = None if timing.working_bytes is None else weights + timing.working_bytes
    return {
        "model": video.model,
        "seconds": timing.seconds,
        "median_seconds": timing.median,
        "stages": {name: statistics.median(stage[name] for stage in kept) for name in ("encode", "step", "decode")}
        if kept
        else None,
        "tflop_per_step": flops / 1e12,
        "memory": {"weights": video.weights, "working": timing.working_bytes, "peak": peak},
        "error": timing.error,
    }


def _cache_share(timings: Mapping[str, Timing], *, judge: bool) -> list[dict[str, Any]]:
    cache, video = (timings.get(name, Timing()).median for name in ("cache", "contextanyone"))
    if cache is None or video is None:
        return []
    share = judged(cache / video, CACHE_SHARE, None, judge=judge)
    return [{"name": "reference cache / video", "mode": "", "cache_seconds": cache} | share]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, one section per case."""
    parts = [heading(result)]
    for case in result["cases"]:
        parts.append(f"## {case_title(case)}, {result['options']['steps']} steps\n")
        parts.append(markdown_table(_HEADS, [_row(item) for item in case["models"]]))
        parts.append("FLOPs are those of the denoising alone.\n")
        parts.append(ratio_table(case["ratios"]))
    return "\n".join(parts)


def bars(result: dict[str, Any]) -> list[Bar]:
    """The result as a plot."""
    found = []
    for case in result["cases"]:
        timed = [item for item in case["models"] if item["median_seconds"] is not None]
        found.append(Bar(case_title(case)))
        found += [Bar(item["model"], item["median_seconds"], ours=item["model"] == "contextanyone") for item in timed]
    return found


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    stage = item["stages"] or {}
    cells = [item["error"] or number(item["median_seconds"])]
    cells += [number(stage.get(name)) for name in ("encode", "step", "decode")]
    return (item["model"], *cells, number(item["tflop_per_step"]), gib(item["memory"]["peak"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 a wrong option."""
    return run_command("benchmarks.video", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    parser = Parser("benchmarks.video", __doc__ or "")
    add_shared(parser, repeats=2, out="outputs/benchmarks")
    add = parser.add_argument
    add("--cases", type=case_sizes, nargs="+", metavar="FRAMESxREFERENCES", help="81x1, or 5x1 with --small")
    add("--models", type=one_of("model", *MODELS), nargs="+", default=list(MODELS), help=", ".join(MODELS))
    add("--steps", type=whole(2, 1000), default=50, help="denoising steps (50)")
    add("--compile", action="store_true", help="compile the repeated block of every network")
    add("--text-layers", type=whole(1, UMT5_LAYERS), default=UMT5_LAYERS, help=f"of umT5-XXL ({UMT5_LAYERS})")
    options = parser.parse(argv)
    with chosen_kernel(options):
        result = measure(options)
    text = table(result)
    paths = write_report(options.out, "video", result, text, bars(result))
    sys.stdout.write(text + "\n" + "".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    sys.exit(main())
