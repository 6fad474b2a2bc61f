"""Time, FLOPs and memory of one denoising step: ours compared with plain Wan, diffusers, Phantom and VACE.

    python -m benchmarks.step                                  # on a GPU, 832x480: 81x1, 33x1 and 81x4
    python -m benchmarks.step --device cpu --small             # the same code at tiny sizes

A step consists of all passes of the guidance: two for cfg, three for dual and Phantom. The weights are random.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.options import (
    MODES,
    add_shared,
    case_sizes,
    chosen_kernel,
    frame_of_result,
    make_case,
    make_folders,
    network_config,
    open_device,
    tell,
)
from benchmarks.report import Bar, case_title, gib, heading, markdown_table, number, ratio_table, write_report
from benchmarks.step_case import measure_case
from benchmarks.steps import VARIANTS, Case, Networks
from contextanyone_core.cli.parsing import Parser, one_of, whole
from training.commands import run_command

_FULL_CASES, _SMALL_CASES = [(81, 1), (33, 1), (81, 4)], [(5, 1), (9, 2)]
_TITLE = "Time of a denoising step"
_HEADS = ("variant", "mode", "passes", "TFLOP", "seconds", "TFLOP/s", "of matmul", "GiB")


def measure(options: Namespace) -> dict[str, Any]:
    """Measure all requested cases; returns the content of the JSON.

    Raises:
        InputError: the device does not exist, or a folder cannot be made.
    """
    device, dtype = open_device(options), getattr(torch, options.dtype)
    make_folders(options)
    sizes = options.cases or (_SMALL_CASES if options.small else _FULL_CASES)
    networks = Networks(network_config(small=options.small), device, dtype)
    cases = [_measure(options, networks, make_case(options, *size)) for size in sizes]
    return frame_of_result(options, device, _TITLE, "modes", "variants", "steps") | {"cases": cases}


def _measure(options: Namespace, networks: Networks, case: Case) -> dict[str, Any]:
    return measure_case(options, networks, case, lambda name: tell(f"{case}: {name}"))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, one section per case."""
    parts = [heading(result)]
    for case in result["cases"]:
        parts.append(f"## {case_title(case)}, {case['tokens']} tokens\n")
        rate = case["matmul"]["tflops_per_second"]
        parts.append(f"Matrix products in {result['options']['dtype']} reach {rate:.4g} TFLOP/s here.\n")
        parts.append(markdown_table(_HEADS, [_row(item) for item in case["variants"]]))
        if case["cache"] is not None:
            parts.append(f"The reference cache takes {case['cache']['median_seconds']:.4g} s, once for each video.\n")
        parts.append(ratio_table(case["ratios"]))
    return "\n".join(parts)


def bars(result: dict[str, Any]) -> list[Bar]:
    """The result as a plot."""
    found = []
    for case in result["cases"]:
        found.append(Bar(case_title(case)))
        for item in case["variants"]:
            ours = item["variant"].startswith("ours")
            label = f"{item['variant']}, {item['mode']}"
            if item["median_seconds"] is not None:
                found.append(Bar(label, item["median_seconds"], f"{item['tflop']:.4g} TFLOP", ours=ours))
    return found


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    shown = (item["tflop"], item["median_seconds"], item["tflops_per_second"], item["share_of_matmul"])
    cells = [number(value) for value in shown]
    cells[1] = item["error"] or cells[1]
    return (item["variant"], item["mode"], str(item["passes"]), *cells, gib(item["memory"]["peak"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 a wrong option."""
    return run_command("benchmarks.step", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    parser = Parser("benchmarks.step", __doc__ or "")
    add_shared(parser, repeats=5, out="outputs/benchmarks")
    add = parser.add_argument
    add("--cases", type=case_sizes, nargs="+", metavar="FRAMESxREFERENCES", help="81x1 33x1 81x4 unless --small")
    add("--variants", type=one_of("variant", *VARIANTS), nargs="+", default=list(VARIANTS), help=", ".join(VARIANTS))
    add("--modes", type=one_of("mode", *MODES), nargs="+", default=list(MODES), help="eager compiled")
    add("--steps", type=whole(1, 1000), default=50, help="of a video, for the share of the reference cache (50)")
    options = parser.parse(argv)
    with chosen_kernel(options):
        result = measure(options)
    text = table(result)
    paths = write_report(options.out, "step", result, text, bars(result))
    sys.stdout.write(text + "\n" + "".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    sys.exit(main())
