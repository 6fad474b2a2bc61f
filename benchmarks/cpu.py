"""Speed on this processor: conv3d by torch's and by oneDNN's kernel, and bf16 against float32.

    nice python -m benchmarks.cpu

Both variants of a row run in every round, in alternating order. Times are processor seconds, so that the load of the
machine does not matter; a ratio is the median over the rounds, above 1 if the second variant is faster.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import autocast

from benchmarks.machine import describe_versions
from benchmarks.measure import Action, ratios
from benchmarks.options import tell
from benchmarks.report import markdown_table
from contextanyone_core.cli.parsing import Parser, whole
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.generation.pipeline import MINIATURE
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.conv3d import conv3d
from contextanyone_core.runtime.processor import fast_dtype, this_processor
from training.commands import run_command
from training.parts.transformer_base import explicit_attention

_CPU = torch.device("cpu")
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_HEADS = ("what", "first, ms", "second, ms", "first / second")
_ITERATIONS = 5  # of Muon's orthogonalisation


def measure(options: Namespace) -> dict[str, Any]:
    """Every row, in the form of the JSON output."""
    torch.manual_seed(0)
    rows: dict[str, Mapping[str, Action]] = {
        "conv3d, 16 channels, 6x128x128: torch / oneDNN": _convolution(),
        "VAE decode, 17x128x128: torch / oneDNN": _decoding(frames=1 if options.small else 5),
        "matrix product, 3840x256x1024: bf16 / float32": _products(_product),
        "Muon's products, 256x1024: bf16 / float32": _products(_orthogonal),
        "training step, 12 stills: bf16 / float32": _steps(batch=1 if options.small else 12),
    }
    with torch.no_grad():
        found = {}
        for name, pair in rows.items():
            tell(name)
            found[name] = _alternate(pair, options.repeats)
    machine = {"flags": sorted(this_processor().flags), "threads": torch.get_num_threads()}
    return {"machine": machine, "auto": str(fast_dtype(_CPU)), "versions": describe_versions(), "seconds": found}


def show(result: dict[str, Any]) -> str:
    """The table, and what `precision: auto` is here."""
    rows = []
    for name, seconds in result["seconds"].items():
        first, second = seconds.values()
        middle = [f"{1e3 * statistics.median(values):.1f}" for values in (first, second)]
        rows.append([name, *middle, f"{statistics.median(ratios(first, second)):.2f}"])
    dtype = result["auto"].removeprefix("torch.")
    return f"{markdown_table(_HEADS, rows)}\nprecision: auto is {dtype} on this processor.\n"


def _alternate(pair: Mapping[str, Action], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of both variants in every round, after one unmeasured run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for index in range(-1, repeats):
        for name in sorted(pair, reverse=index % 2 == 0):
            began = time.process_time()
            pair[name]()
            if index >= 0:
                seconds[name].append(time.process_time() - began)
    return seconds


def _convolution() -> dict[str, Action]:
    x, weight, bias = torch.randn(1, 16, 6, 130, 130), torch.randn(16, 16, 3, 3, 3), torch.randn(16)
    return {"torch": lambda: torch.conv3d(x, weight, bias), "oneDNN": lambda: conv3d(x, weight, bias)}


def _decoding(frames: int) -> dict[str, Action]:
    vae = VideoVAE(load_vae(MINIATURE / "vae.safetensors"))
    latents = torch.randn(1, 16, frames, 16, 16)
    return {"torch": lambda: vae.vae.decode(latents), "oneDNN": lambda: vae.decode(latents)}


def _products(make: Callable[[torch.dtype], Action]) -> dict[str, Action]:
    return {name: make(_DTYPES[name]) for name in ("bf16", "float32")}


def _product(dtype: torch.dtype) -> Action:
    a, b = torch.randn(3840, 256, dtype=dtype), torch.randn(256, 1024, dtype=dtype)
    return lambda: a @ b


def _orthogonal(dtype: torch.dtype) -> Action:
    """The products of `training.muon.orthogonal`."""
    x = torch.randn(256, 1024).to(dtype) / 1024

    def run() -> None:
        for _ in range(_ITERATIONS):
            gram = x @ x.T
            _ = (gram + gram @ gram) @ x

    return run


def _steps(batch: int) -> dict[str, Action]:
    """Forward and backward pass of the miniature's transformer, as a run trains it, in both precisions."""
    config = replace(ContextAnyoneConfig.miniature(), image_dim=None, emphasize=False)
    network = ContextAnyoneTransformer(config, attention=explicit_attention)
    latents, text = torch.randn(batch, 16, 1, 16, 16), torch.randn(batch, config.text_len, config.text_dim)
    timesteps = torch.full((batch,), 500.0)

    def step(*, bf16: bool) -> None:
        with torch.enable_grad(), autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network(latents, timesteps, text).velocity.float().square().mean()
        loss.backward()
        network.zero_grad()

    return {"bf16": lambda: step(bf16=True), "float32": lambda: step(bf16=False)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 a wrong option."""
    return run_command("benchmarks.cpu", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    parser = Parser("benchmarks.cpu", __doc__ or "")
    parser.add_argument("--repeats", type=whole(1, 1000), default=5, help="measured rounds (5)")
    parser.add_argument("--small", action="store_true", help="small sizes, to test that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse(argv)
    result = measure(options)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    sys.stdout.write(show(result))


if __name__ == "__main__":
    sys.exit(main())
