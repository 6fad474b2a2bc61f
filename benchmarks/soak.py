"""A small run of two processes that is hit by faults again and again, and must equal a run that was left alone.

    nice python -m benchmarks.soak --out DIR                     # 40 faults
    nice python -m benchmarks.soak --out DIR --faults 6 --seed 3

Clips of the character world, written out and cached, train a network of a million parameters under FSDP2; nothing is
compiled. The processes are forks of this one, which a start costs the least. The run that is hit writes to a small
tmpfs, which a fault fills; where this user may mount none, a full disk is a limit on the size of files. DIR/soak.jsonl
has a line for each fault, with what the trainer and its commands wrote about it. Linux only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  # as the next line: what every start would import, once for all
import torch
import torch._dynamo

from benchmarks.options import tell
from contextanyone_core.cli.parsing import Parser, whole
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.encoders.vae import load_vae
from contextanyone_core.errors import ContextAnyoneError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer
from contextanyone_core.weights.safetensors_file import read_header
from training import cache, train
from training.commands import run_command
from training.data.world import WorldSettings, write_world
from training.parts import manifest  # noqa: F401
from training.settings import MINIATURE, PRESETS
from training.state import CheckpointStore

_SAVE_EVERY, _ROWS = 5, 8
_PATIENCE = 1800.0  # seconds until a process counts as hanging; a busy machine is no failure
_MOST_REPEATED = 3 * _SAVE_EVERY  # steps: since a checkpoint, with one being written, and with one damaged


class SoakError(ContextAnyoneError):
    """The run that was hit differs from the one that was left alone, or a fault was not named or lost something."""


class Run:
    """A run of two processes in a folder, started again and again.

    Args:
        out: the run's folder. beside: of its data, and of what its processes write to stderr.
    """

    def __init__(self, out: Path, beside: Path) -> None:
        self.out, self.beside, self._starts = out, beside, 0
        self._processes: list[BaseProcess] = []

    @property
    def written(self) -> Path:
        """What the processes of the last start wrote."""
        return self.beside / f"{self.out.name}-start-{self._starts:03d}.log"

    def start(self, steps: int = 1_000_000) -> None:
        """Start both processes, as a launcher would."""
        self._starts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        settings = [f"run.out={self.out}", f"run.steps={steps}", f"run.workers={int(random.random() < 0.1)}"]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
        for rank in ("0", "1"):
            environment = place | {"RANK": rank, "LOCAL_RANK": rank}
            self._processes.append(_fork(train.main, _words(self.beside, *settings), self.written, environment))

    def wait_for_steps(self, count: int) -> None:
        """Wait for so many more lines of the run's log."""
        target = self._lines() + count
        self.wait_for(lambda: self._lines() >= target)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds. Raises SoakError if a process ends before, or nothing comes in half an hour."""
        deadline = time.monotonic() + _PATIENCE
        while not holds():
            if any(process.exitcode is not None for process in self._processes) or time.monotonic() > deadline:
                self.end()
                raise SoakError(f"{self.out} ended, or hangs: see {self.written}.")
            time.sleep(0.05)

    def _lines(self) -> int:
        log = self.out / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def hit(self, act: Callable[[int], object], *, both: bool) -> None:
        """Do something to one of the processes, or to both."""
        for process in self._processes if both else [random.choice(self._processes)]:
            if process.pid is not None and process.exitcode is None:
                with suppress(ProcessLookupError):
                    act(process.pid)

    def end(self) -> list[int | None]:
        """Wait for both; when one has failed, the other has a minute, as from a launcher. Returns the exit codes."""
        deadline, failed = time.monotonic() + _PATIENCE, False
        while any(p.exitcode is None for p in self._processes) and time.monotonic() < deadline:
            if not failed and any(p.exitcode not in (None, 0) for p in self._processes):
                failed, deadline = True, time.monotonic() + 60
            time.sleep(0.05)
        for process in self._processes:
            process.kill()
            process.join()
        codes, self._processes = [process.exitcode for process in self._processes], []
        return codes

    def named(self, pattern: str, log: Path | None = None) -> str:
        """The first line that names a fault, in what the last start wrote. Raises SoakError where there is none."""
        log = log or self.written
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if (found := next((line for line in lines if re.search(pattern, line)), None)) is None:
            raise SoakError(f"No line of {log} says {pattern!r}.")
        return found

    def cached(self) -> Path:
        """Run cache.py; returns what it wrote."""
        log = self.beside / f"cache-{self._starts:03d}-{time.monotonic_ns()}.log"
        process = _fork(cache.main, _words(self.beside), log)
        process.join()
        if process.exitcode != 0:
            raise SoakError(f"cache.py ended with {process.exitcode}: see {log}.")
        return log


def _words(beside: Path, *settings: str) -> list[str]:
    """The command line of the trainer and of cache.py."""
    fixed = {"run.save_every": _SAVE_EVERY, "run.keep_last": 2, "run.sample_every": 20, "run.trackers": "[]"}
    fixed |= {"run.threads": 1, "optim.schedule": "constant", "precision": "fp32"}
    fixed |= {"init.from": beside / "start.safetensors", "part.data.poses": "null"}
    fixed |= {"part.sample_clips": 1, "part.sample_steps": 1, "part.data.manifest": beside / "clips" / "manifest.jsonl"}
    fixed |= {"part.data.cache": beside / "cache", "part.data.buckets.sizes": "[64x64]"}
    fixed |= {"part.data.buckets.frames": "[5]", "part.data.buckets.budget": 2}
    words = [f"{key}={value}" for key, value in fixed.items()]
    return ["--config", str(PRESETS / "miniature" / "manifest.yaml"), "--set", *words, *settings]


def _fork(
    main: Callable[[list[str]], int], words: list[str], log: Path, environment: dict[str, str] | None = None
) -> BaseProcess:
    """A command in a fork that writes to a file."""

    def call() -> None:
        os.environ.update(environment or {})
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.exit(main(words))

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def _damage(path: Path) -> None:
    """Flip the bits of a byte in the second half, where the tensors are."""
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content) // 2, len(content))] ^= 0xFF
    path.write_bytes(content)


def _terminate(run: Run) -> list[str]:
    run.hit(lambda pid: os.kill(pid, signal.SIGTERM), both=random.random() < 0.5)
    if (codes := run.end()) != [143, 143]:
        raise SoakError(f"SIGTERM ended the processes with {codes}: see {run.written}.")
    return [run.named("Saved at step")]


def _kill(run: Run) -> list[str]:
    run.hit(lambda pid: os.kill(pid, signal.SIGKILL), both=False)
    run.end()
    return [run.named("Another process of this run has ended")]


def _kill_both(run: Run) -> None:
    run.hit(lambda pid: os.kill(pid, signal.SIGKILL), both=True)
    run.end()


def _fill(run: Run) -> list[str]:
    filler = run.out.parent / "filler"
    if run.out.parent.is_mount():
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * (1 << 16))
    else:
        run.hit(lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (10_000, 10_000)), both=True)
    run.end()
    filler.unlink(missing_ok=True)
    place, full = re.escape(str(run.out)), "(No space left|File too large)"
    return [run.named(f"{place}.*{full}|{full}.*{place}")]


def _damage_shard(run: Run) -> list[str]:
    """A copy of the run goes on without the row; cache.py mends it before the run itself goes on."""
    _terminate(run)
    kind = random.choice(("clip", "reference"))
    for shard in (run.beside / "cache" / kind).glob("*.safetensors"):
        _damage(shard)
    copy = Run(run.beside / "without-a-row", run.beside)
    shutil.copytree(run.out, copy.out)
    copy.start()
    copy.wait_for_steps(_ROWS)
    _terminate(copy)
    lines = [copy.named("The row .* is skipped")]
    shutil.rmtree(copy.out)
    copy.written.unlink()
    return [*lines, run.named("Damaged entries", run.cached())]


def _damage_checkpoint(run: Run) -> list[str]:
    """Of at least two; both processes are killed, so that no save comes after the damage."""
    run.wait_for(lambda: len(list(run.out.glob("checkpoints/step-*"))) > 1)
    _kill_both(run)
    _damage(random.choice(sorted(max(run.out.glob("checkpoints/step-*")).glob("*.safetensors"))))
    run.start()
    run.wait_for_steps(1)
    _terminate(run)
    return [run.named("Checkpoint .* is damaged")]


def _remove_reference(run: Run) -> list[str]:
    """cache.py leaves the row out, and the run refuses to go on with other data until the picture is back."""
    _terminate(run)
    picture = random.choice(sorted((run.beside / "clips").glob("*/reference.png")))
    aside = shutil.move(picture, run.beside / picture.name)
    lines = [run.named("missing_file", run.cached())]
    run.start()
    if (codes := run.end()) == [0, 0]:
        raise SoakError(f"The run goes on with other data, {codes}: see {run.written}.")
    lines.append(run.named("holds a run on other data"))
    shutil.move(aside, picture)
    run.cached()
    return lines


FAULTS: dict[str, Callable[[Run], list[str]]] = {
    "SIGKILL": _kill,
    "SIGTERM": _terminate,
    "full disk": _fill,
    "damaged shard of the cache": _damage_shard,
    "damaged checkpoint": _damage_checkpoint,
    "removed reference": _remove_reference,
}


def soak(options: Namespace) -> None:
    """Make both runs and compare them.

    Raises:
        SoakError: they differ, or a fault was not named or lost something.
    """
    folder, began = options.out.resolve(), time.monotonic()
    random.seed(options.seed)
    _prepare(folder)
    with _small_disk(folder / "disk") as disk:
        hit = Run(disk / "hit", folder)
        hit.cached()
        kinds = [list(FAULTS)[index % len(FAULTS)] for index in range(options.faults)]
        random.shuffle(kinds)
        for number, kind in enumerate(kinds, start=1):
            _make_fault(hit, number, kind)
        steps = _steps_of(hit.out)[-1] + 1 + _SAVE_EVERY
        straight = Run(folder / "straight", folder)
        for run in (hit, straight):
            run.start(steps)
            if run.end() != [0, 0]:
                raise SoakError(f"{run.out} did not end as it should: see {run.written}.")
        repeated = _compare(straight.out, hit.out, steps)
    tell(
        f"{options.faults} faults: equal bit for bit after {steps} steps, at most {repeated} repeated at once, "
        f"{time.monotonic() - began:.0f} s"
    )


def _prepare(folder: Path) -> None:
    """Clips, and a network of the miniature's kind with two narrow blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    write_world(folder / "clips", WorldSettings(_ROWS, 5, (64, 64), 7))
    whole_size = ContextAnyoneConfig.from_dict(read_header(MINIATURE / "transformer.safetensors").config)
    config = replace(whole_size, dim=128, ffn_dim=256, num_layers=2, condition_dim=0)
    torch.manual_seed(0)
    load_vae(MINIATURE / "vae.safetensors")  # whose libraries are slow to import, like those of the other two
    load_text_encoder(MINIATURE / "text_encoder.safetensors")
    load_image_encoder(MINIATURE / "image_encoder.safetensors")
    save_transformer(folder / "start.safetensors", ContextAnyoneTransformer(config), dtype=torch.float32)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs of 128 MB where this user may mount one, else a plain folder."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _make_fault(run: Run, number: int, kind: str) -> None:
    run.start()
    run.wait_for_steps(random.randint(1, 2 * _SAVE_EVERY))
    time.sleep(random.uniform(0, 1))
    lines = FAULTS[kind](run)
    with (run.beside / "soak.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"fault": number, "kind": kind, "step": _steps_of(run.out)[-1], "named": lines}) + "\n")
    tell(f"{number}: {kind}: {' / '.join(lines)}")


def _steps_of(out: Path) -> list[int]:
    return [row["step"] for row in _log(out)]


def _log(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log; a full disk may have cut the last one, which the next start removes."""
    *whole_lines, _ = (out / "log.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole_lines]


def _compare(straight: Path, hit: Path, steps: int) -> int:
    """Compare the last checkpoints, the exports and the losses. Returns the most steps that were repeated at once."""
    left, right = (CheckpointStore(out / "checkpoints").load_latest() for out in (straight, hit))
    if left is None or right is None or not left.progress.step == right.progress.step == steps:
        raise SoakError("One of the runs did not reach its last step.")
    for file, tensors in left.tensors.items():
        for name in tensors:
            if not torch.equal(tensors[name], right.tensors[file][name]):
                raise SoakError(f"{file}, {name}: the run with faults differs.")
    for path in (straight / "export").glob("*.safetensors"):
        if path.read_bytes() != (hit / "export" / path.name).read_bytes():
            raise SoakError(f"The exported {path.name} differs.")
    losses = [{row["step"]: row["loss"] for row in _log(out)} for out in (straight, hit)]
    if losses[0] != losses[1] or len(losses[0]) != steps:
        raise SoakError("The losses of the steps, as the logs have them last, differ.")
    found = _steps_of(hit)
    ahead = [now - before for before, now in pairwise(found)]
    repeated = 1 - min(ahead)
    if max(ahead) > 1 or repeated > _MOST_REPEATED:
        raise SoakError(f"A start left out {max(ahead) - 1} steps, or repeated {repeated}.")
    return repeated


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command("benchmarks.soak", lambda: soak(_options(argv)))


def _options(argv: Sequence[str] | None) -> Namespace:
    parser = Parser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--faults", type=whole(1, 1000), default=40, help="how many (40)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments (0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
