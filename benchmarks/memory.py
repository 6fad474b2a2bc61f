"""Peak memory and time of a whole generation in every memory mode, from weight files of the full sizes.

    python -m benchmarks.memory                                # on a GPU, 832x480x81; needs 17 GB of disk temporarily
    python -m benchmarks.memory --models refalign bernini      # the public reference models, with plain Wan's tensors
    python -m benchmarks.memory --device cpu --small           # the same code at tiny sizes; peaks only on a GPU

The files hold random weights and are read by the pipeline of `contextanyone generate`. Loading is not timed, but its
memory on the device is included.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import GIB
from benchmarks.measure import synchronise
from benchmarks.networks import plain
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
from benchmarks.random_files import plan_components, write_random_files
from benchmarks.report import Bar, case_title, gib, heading, markdown_table, number, write_report
from benchmarks.stack import UMT5_LAYERS, StackSizes, full_sizes, small_sizes
from benchmarks.steps import Case
from benchmarks.video import stages
from contextanyone_core.cli.parsing import Parser, one_of, whole
from contextanyone_core.generation.load import model_sizes
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.runtime.memory import MODES, stage_bytes
from contextanyone_core.runtime.options import Execution, Video
from training.commands import run_command
from training.speed import peak_memory

MODELS_HERE = [name for name, spec in MODELS.items() if spec.references and not spec.hosted]
"""The models with references that run on our transformer."""
LOW_BOUND = 8e9
"""Bytes that `low` may take for 832x480x81 with one reference."""
_TITLE = "Peak memory of a generation"
_PROMPT = TwoStagePrompt("A woman with red hair in a park.", "The same woman is waving at the beach at sunset.")
_HEADS = (
    "model",
    "memory",
    "peak GiB",
    "reserved",
    "by arithmetic",
    "encode s",
    "a step s",
    "decode s",
    "at most 8 GB",
)


def measure(options: Namespace) -> dict[str, Any]:
    """Measure every mode of every model; returns the content of the JSON.

    Raises:
        InputError: the device does not exist, or a folder cannot be made.
        OSError: there is no space for the files.
    """
    device, dtype = open_device(options), getattr(torch, options.dtype)
    case = make_case(options, *(options.case or ((5, 1) if options.small else (81, 1))))
    make_folders(options)
    with tempfile.TemporaryDirectory(prefix="contextanyone-memory-", dir=options.scratch) as name:
        tell("write the weights")
        sizes = small_sizes() if options.small else full_sizes(options.text_layers)
        folders = _write_weights(options.models, Path(name), sizes, dtype)
        modes = [
            _run(options, folders[model], case, mode, device, model)
            for model in options.models
            for mode in options.modes
        ]
    shown = {"frames": case.frames, "width": case.width, "height": case.height, "references": case.references}
    found = frame_of_result(options, device, _TITLE, "steps", "text_layers")
    return found | {"case": shown, "modes": modes, "resident_bytes": peak_memory(torch.device("cpu"))}


def _write_weights(models: Sequence[str], folder: Path, sizes: StackSizes, dtype: torch.dtype) -> dict[str, Path]:
    """The folder of each model's weights: ours, or plain Wan's for all others, with one set of encoders."""
    folders: dict[str, Path] = {}
    for name in ("ours", "plain"):
        using = [model for model in models if (model == "contextanyone") == (name == "ours")]
        if not using:
            continue
        config = sizes.transformer if name == "ours" else plain(sizes.transformer)
        components = plan_components(replace(sizes, transformer=config))
        (folder / name).mkdir()
        if folders:  # the encoders are there already
            first = next(iter(folders.values()))
            for encoder in components.keys() - {"transformer"}:
                (folder / name / f"{encoder}.safetensors").hardlink_to(first / f"{encoder}.safetensors")
            components = {"transformer": components["transformer"]}
        write_random_files(components, folder / name, dtype, lambda component: tell(f"  {component}"))
        folders |= dict.fromkeys(using, folder / name)
    return folders


def _run(options: Namespace, folder: Path, case: Case, mode: str, device: torch.device, model: str) -> dict[str, Any]:
    """Measure one mode: load, generate a video in two or more rounds, free everything."""
    tell(f"{case}: {model}, {mode}")
    _start_counting(device)
    dtype = getattr(torch, options.dtype)
    execution = Execution(memory=mode, attention=options.attention)
    spec = MODELS[model]
    config, sizes = model_sizes(folder, spec)
    video = Video(case.shape, case.references)
    by_stage = stage_bytes(mode, sizes, config, video, dtype.itemsize, spec)
    found: dict[str, Any] = {"model": model, "memory": mode, "by_arithmetic": by_stage}
    found |= {"peak": None, "reserved": None, "error": None}
    rounds: list[dict[str, float]] = []
    try:
        pipeline = ContextAnyonePipeline.from_folder(folder, device, dtype, spec, execution)
        rounds += [_generate(pipeline, case, options.steps) for _ in range(options.repeats)]
    except torch.OutOfMemoryError:
        found["error"] = "out of memory"
    if device.type == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated(device)
        found["reserved"] = torch.cuda.max_memory_reserved(device)
    bound = None if found["peak"] is None or not _is_bound(options, case, mode) else found["peak"] <= LOW_BOUND
    return found | {"stages": rounds, "within_bound": bound}


def _is_bound(options: Namespace, case: Case, mode: str) -> bool:
    """Whether the bound applies to this run."""
    return mode == "low" and not options.small and case == Case(81, 832, 480, 1)


def _generate(pipeline: ContextAnyonePipeline, case: Case, steps: int) -> dict[str, float]:
    settings = GenerationSettings(num_frames=case.frames, width=case.width, height=case.height, steps=steps)
    pictures = [torch.rand(1, 3, case.height, case.width) * 2 - 1 for _ in range(case.references)]
    marks = [time.perf_counter()]

    def mark(*_: int) -> None:
        synchronise(pipeline.device)
        marks.append(time.perf_counter())

    pipeline.generate(pictures, _PROMPT, settings, progress=mark)
    mark()
    return stages(marks)


def _start_counting(device: torch.device) -> None:
    gc.collect()  # the previous mode
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = []
    for item in result["modes"]:
        last = item["stages"][-1] if item["stages"] else {}
        met = {True: "yes", False: "no", None: ""}[item["within_bound"]]
        times = [number(last.get(name)) for name in ("encode", "step", "decode")]
        peak = item["error"] or gib(item["peak"])
        computed = f"{max(item['by_arithmetic'].values()) / GIB:.2f}"
        rows.append((item["model"], item["memory"], peak, gib(item["reserved"]), computed, *times, met))
    title = f"## {case_title(result['case'])}, {result['options']['steps']} steps, the last round\n"
    return "\n".join([heading(result, "each mode alone"), title, markdown_table(_HEADS, rows)])


def bars(result: dict[str, Any]) -> list[Bar]:
    """Bars with the seconds of a step, labelled with the peak memory."""
    timed = [item for item in result["modes"] if item["stages"]]
    found = [Bar(case_title(result["case"]))]
    return found + [
        Bar(f"{item['model']}, {item['memory']}, a step", item["stages"][-1]["step"], f"{gib(item['peak'])} GiB")
        for item in timed
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 a wrong option."""
    return run_command("benchmarks.memory", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    parser = Parser("benchmarks.memory", __doc__ or "")
    add_shared(parser, repeats=2, out="outputs/benchmarks")
    add = parser.add_argument
    add("--case", type=case_sizes, metavar="FRAMESxREFERENCES", help="81x1, or 5x1 with --small")
    add(
        "--models",
        type=one_of("model", *MODELS_HERE),
        nargs="+",
        default=["contextanyone"],
        help=", ".join(MODELS_HERE),
    )
    add("--modes", type=one_of("memory", *MODES), nargs="+", default=list(reversed(MODES)), help="low balanced high")
    add("--steps", type=whole(2, 1000), default=4, help="denoising steps (4)")
    add("--text-layers", type=whole(1, UMT5_LAYERS), default=UMT5_LAYERS, help=f"of umT5-XXL ({UMT5_LAYERS})")
    add("--scratch", type=Path, metavar="FOLDER", help="where the weights are meanwhile (the system's own)")
    options = parser.parse(argv)
    with chosen_kernel(options):
        result = measure(options)
    text = table(result)
    paths = write_report(options.out, "memory", result, text, bars(result))
    sys.stdout.write(text + "\n" + "".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    sys.exit(main())
