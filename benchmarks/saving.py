"""What a checkpoint costs the step that saves: one of eight shards of the 1.3B network beside matrix products.

    python -m benchmarks.saving                        # two cores, 8 GB of memory, 8 GB of disk
    python -m benchmarks.saving --products 200         # shorter steps, where others use the machine
    python -m benchmarks.saving --small                # the same code at tiny size: measures nothing

A step is as many products of 2048 x 2048 matrices as have the FLOPs of one picture of 832x480 with its reference,
forward and backward. Each round has a step without and one with a save, in turn; the first round, which allocates the
copies, is not counted. CPU time tells the step's own from that of the thread that saves, on a busy machine too.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.machine import GIB, describe_device, describe_versions
from benchmarks.options import make_folders, network_config, tell
from benchmarks.report import markdown_table
from contextanyone_core.atomic_file import write_text
from contextanyone_core.cli.parsing import Parser, whole
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.memory import CLIP_TOKENS
from training.commands import run_command
from training.distributed import World
from training.flops import backward_flops, forward_flops
from training.saving import THREAD, Saver
from training.state import CheckpointStore, Progress

_PROCESSES, _SIDE, _SMALL_SIDE = 8, 2048, 64


class Spent(NamedTuple):
    """Seconds of a step: by the clock, of its own CPU time on all cores, and of the thread that saves."""

    wall: float
    own: float
    saving: float


def measure(options: Namespace) -> dict[str, Any]:
    """Measure all rounds; returns the content of the JSON.

    Raises:
        OSError: the disk is full.
    """
    make_folders(options)
    torch.set_num_threads(options.threads)
    config = network_config(small=options.small)
    products = options.products or _products_of_a_step(config, small=options.small)
    files = _shard(config)
    size = sum(tensor.nbytes for named in files.values() for tensor in named.values())
    before = _peak()
    tell(f"{size / 1e9:.2f} GB to save, a step of {products} products, {before:.2f} GiB of memory before")
    side = _SMALL_SIDE if options.small else _SIDE
    matrix = torch.randn(side, side)
    with (
        tempfile.TemporaryDirectory(prefix="contextanyone-saving-", dir=options.scratch) as folder,
        Saver(CheckpointStore(Path(folder)), World(0, 1, torch.device("cpu"))) as saver,
    ):
        rounds = [_round(saver, files, matrix, products, number) for number in range(options.rounds + 1)]
    described = {"schema": 1, "title": "The step that saves", "versions": describe_versions()}
    described |= {"machine": describe_device(torch.device("cpu")), "small": options.small}
    memory = {"before_gib": before, "peak_gib": _peak()}
    return described | {"bytes": size, "products": products, "rounds": rounds[1:], "first": rounds[0]} | memory


def _products_of_a_step(config: ContextAnyoneConfig, *, small: bool) -> int:
    tokens = 4 if small else (832 // 16) * (480 // 16)
    flops = sum(passes(config, tokens, [tokens], CLIP_TOKENS) for passes in (forward_flops, backward_flops))
    return max(1, round(flops / (2 * (_SMALL_SIDE if small else _SIDE) ** 3)))


def _shard(config: ContextAnyoneConfig) -> dict[str, dict[str, Tensor]]:
    """Weights, their average and two moments: the first of eight shards of each tensor, as FSDP2 cuts it."""
    network = ContextAnyoneTransformer(config, device="meta")

    def share() -> dict[str, Tensor]:
        named = network.named_parameters()
        return {name: torch.full((-(-p.shape[0] // _PROCESSES), *p.shape[1:]), 0.5) for name, p in named}

    moments = {f"{name}/{moment}": t for moment in ("exp_avg", "exp_avg_sq") for name, t in share().items()}
    return {"model": share(), "ema": share(), "optimizer": moments}


def _round(
    saver: Saver, files: dict[str, dict[str, Tensor]], matrix: Tensor, products: int, number: int
) -> dict[str, Any]:
    plain = _step(saver, matrix, products)
    began = time.monotonic()
    saver.start(Progress(step=number + 1), files)
    held = time.monotonic() - began
    saved = _step(saver, matrix, products)
    worked = time.process_time()
    saver.finish()
    found = {"plain": plain._asdict(), "saving": saved._asdict(), "held": held}
    found |= {"whole": time.monotonic() - began, "after": time.process_time() - worked}
    tell(
        f"{number}: {plain.wall:.1f} s and {saved.wall:.1f} s; CPU {plain.own:.2f} s and {saved.own:.2f} s "
        f"+ {saved.saving:.2f} s of the thread, {found['after']:.2f} s after the step; complete after "
        f"{found['whole']:.1f} s"
    )
    return found


def _step(saver: Saver, matrix: Tensor, products: int) -> Spent:
    """Products, and the wait for copies that comes before an update."""
    identities = [thread.ident for thread in threading.enumerate() if thread.name == THREAD]
    clock = time.pthread_getcpuclockid(identities[0]) if identities and identities[0] else None
    began, worked = time.monotonic(), time.process_time()
    saved = 0.0 if clock is None else time.clock_gettime(clock)
    for _ in range(products):
        torch.mm(matrix, matrix)
    saver.wait_for_copies()
    saving = 0.0 if clock is None else time.clock_gettime(clock) - saved
    return Spent(time.monotonic() - began, time.process_time() - worked - saving, saving)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def table(found: dict[str, Any]) -> str:
    """The result as Markdown: medians over the rounds."""

    pairs = found["rounds"]

    def median(kind: str, value: str) -> float:
        return float(statistics.median(row[kind][value] for row in pairs))

    rows = [
        (title, *(f"{median(kind, value):.2f}" for value in ("wall", "own", "saving")))
        for title, kind in (("without", "plain"), ("that saves", "saving"))
    ]
    wall = statistics.median(row["saving"]["wall"] / row["plain"]["wall"] for row in pairs)
    work = [(row["saving"]["own"] + row["saving"]["saving"]) / row["plain"]["own"] for row in pairs]
    cpu = statistics.median(work)
    whole_cpu = statistics.median(row["saving"]["saving"] + row["after"] for row in pairs)
    return "\n".join(
        [
            f"# {found['title']}\n",
            markdown_table(("step", "seconds", "CPU of the step", "CPU of the saving thread"), rows),
            f"Of {len(pairs)} pairs, medians: time {wall:.3f}, CPU time {cpu:.3f} of a step without. The loop is held "
            f"for {1e3 * statistics.median(row['held'] for row in pairs):.0f} ms. A checkpoint of "
            f"{found['bytes'] / 1e9:.2f} GB takes {whole_cpu:.1f} s of one core and is complete after "
            f"{statistics.median(row['whole'] for row in pairs):.1f} s. Peak memory {found['peak_gib']:.1f} GiB, "
            f"{found['before_gib']:.1f} before.\n",
        ]
    )


def write_result(options: Namespace) -> None:
    """Measure, and write the JSON and the table."""
    found, out = measure(options), options.out
    write_text(out / "saving.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "saving.md", table(found))
    sys.stdout.write(table(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command("benchmarks.saving", lambda: write_result(_options(argv)))


def _options(argv: Sequence[str] | None) -> Namespace:
    parser = Parser(prog="python -m benchmarks.saving", description=__doc__)
    add = parser.add_argument
    add("--small", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    add("--products", type=whole(1, 1_000_000), help="of a step (as many as a picture of 832x480 has FLOPs)")
    add("--rounds", type=whole(1, 1000), default=5, help="pairs of steps (5)")
    add("--threads", type=whole(1, 1024), default=2, help="of the products (2)")
    add("--scratch", type=Path, help="for the checkpoints; the system's own if not given")
    add("--out", type=Path, default="outputs/benchmarks", metavar="FOLDER", help="for the JSON and the table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
