"""One size of the step benchmark: interleaved timing of all variants, their FLOPs and their memory."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Action, Timing, interleave, matmul
from benchmarks.networks import parameter_bytes, prepare
from benchmarks.ratios import CACHE_SHARE, MATMUL_SHARE, STEP_RATIOS, compare, judged
from benchmarks.steps import CACHED, Case, Inputs, Networks, Step, make_step, random_inputs
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.runtime.memory import cache_bytes
from contextanyone_core.sampling.reference_modes import SeparateStream

_MATMUL, _SMALL_MATMUL = (8192, 20), (256, 4)  # size of the matrices, products per measurement


def measure_case(
    options: argparse.Namespace, networks: Networks, case: Case, note: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all variants in all modes at one size; returns their entry of the JSON.

    Args:
        options: `variants`, `modes`, `repeats`, `steps`, `small`.
        note: called with the name of each action before its first run.
    """
    device, dtype = networks.device, networks.dtype
    inputs = random_inputs(networks.config, case, device, dtype)
    steps = {variant: make_step(variant, networks, inputs) for variant in options.variants}
    torch._dynamo.reset()  # graphs for the shapes of another case
    backend = "eager" if options.small else "inductor"
    prepare(networks.all, options.attention, backend if "compiled" in options.modes else None)
    names = {f"{variant} {mode}": (variant, mode) for variant in options.variants for mode in options.modes}
    actions: dict[str, Action] = {name: partial(_run, steps[variant], mode) for name, (variant, mode) in names.items()}
    actions["matmul"], matmul_flops = matmul(device, dtype, *(_SMALL_MATMUL if options.small else _MATMUL))
    if set(CACHED) & set(options.variants):
        actions["cache"] = partial(_make_cache, networks, inputs)
    timings = interleave(actions, options.repeats, device, note)
    flops = count_flops(options.variants, networks.config, case)
    rates = [matmul_flops / seconds for seconds in timings["matmul"].seconds]
    rate = statistics.median(rates)
    variants = [
        _describe(variant, mode, timings[name], flops[variant], steps[variant], rate, networks)
        for name, (variant, mode) in names.items()
    ]
    cache = _describe_cache(options, timings)
    work = {name: flops[variant] for name, (variant, _) in names.items()}
    compared = compare(STEP_RATIOS, timings, work, modes=options.modes, judge=not options.small)
    return {
        "frames": case.frames,
        "width": case.width,
        "height": case.height,
        "references": case.references,
        "tokens": case.shape.token_count(networks.config),
        "matmul": {"tflops_per_second": rate / 1e12, "each": [value / 1e12 for value in rates]},
        "variants": variants,
        "cache": cache,
        "ratios": compared + _shares(options, variants, cache),
    }


def count_flops(variants: Sequence[str], config: ContextAnyoneConfig, case: Case) -> dict[str, int]:
    """FLOPs of each variant's step, counted by torch on meta tensors."""
    bare = Networks(config, torch.device("meta"), torch.float32)
    inputs = random_inputs(config, case, bare.device, bare.dtype)
    counted = {}
    for variant in variants:
        step = make_step(variant, bare, inputs)
        with FlopCounterMode(display=False) as counter:
            step.run()
        counted[variant] = counter.get_total_flops()
    return counted


def _run(step: Step, mode: str) -> None:
    stance: AbstractContextManager[object] = nullcontext()
    if mode == "eager":  # the network may be compiled from the other mode
        stance = torch.compiler.set_stance("force_eager")
    with stance:
        step.run()


@torch.no_grad()
def _make_cache(networks: Networks, inputs: Inputs) -> None:
    SeparateStream(networks.of("ours"), inputs.references)


def _describe(
    variant: str, mode: str, timing: Timing, flops: int, step: Step, rate: float, networks: Networks
) -> dict[str, Any]:
    median = timing.median
    weights = parameter_bytes(step.network)
    kept = _cache_size(networks, step.inputs) if variant in CACHED else 0
    peak = None if timing.working_bytes is None else weights + kept + timing.working_bytes
    return {
        "variant": variant,
        "mode": mode,
        "passes": step.passes,
        "tflop": flops / 1e12,
        "seconds": timing.seconds,
        "median_seconds": median,
        "tflops_per_second": None if median is None else flops / median / 1e12,
        "share_of_matmul": None if median is None else flops / median / rate,
        "memory": {"weights": weights, "cache": kept, "working": timing.working_bytes, "peak": peak},
        "error": timing.error,
    }


def _cache_size(networks: Networks, inputs: Inputs) -> int:
    """Bytes of the reference cache."""
    patch, references = networks.config.patch_size, inputs.references
    tokens = sum(item[0, 0].numel() for item in references.latents) // (patch[0] * patch[1] * patch[2])
    clip = sum(item.shape[1] for item in references.image_embeds)
    return cache_bytes(networks.config, tokens, clip, inputs.latents.element_size())


def _describe_cache(options: argparse.Namespace, timings: Mapping[str, Timing]) -> dict[str, Any] | None:
    """Time to compute the reference cache once, and its share of a video's denoising time."""
    made = timings.get("cache")
    if made is None or made.median is None:
        return None
    steps = {mode: timings.get(f"ours {mode}", Timing()).median for mode in options.modes}
    shares = {
        mode: made.median / (made.median + options.steps * step) for mode, step in steps.items() if step is not None
    }
    return {"seconds": made.seconds, "median_seconds": made.median, "steps": options.steps, "share_of_steps": shares}


def _shares(
    options: argparse.Namespace, variants: Sequence[dict[str, Any]], cache: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Fractions with a bound: plain Wan's and our share of the matrix rate, the cache's share of a video's time."""
    found = []
    for item in variants:
        if item["variant"] in ("wan", "ours") and item["share_of_matmul"] is not None:
            entry = {"name": f"share of the matmul rate, {item['variant']}", "mode": item["mode"]}
            found.append(entry | judged(item["share_of_matmul"], None, MATMUL_SHARE, judge=not options.small))
    for mode, share in (cache or {"share_of_steps": {}})["share_of_steps"].items():
        entry = {"name": f"share of the cache in {options.steps} steps", "mode": mode}
        found.append(entry | judged(share, CACHE_SHARE, None, judge=not options.small))
    return found
