"""Batches from worker processes: the order of the steps, OpenCV in forks, signals; and what the terminal shows."""

import gc
import io
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import linear_part
import numpy as np
import pytest
import torch
from processes import assert_worker_has_all_but_networks

from contextanyone_core.errors import CheckpointError
from training.log import ProgressDisplay, StepLog
from training.prefetch import StartMethod, batches, start_method, to_device


class Pair(NamedTuple):
    left: torch.Tensor
    right: str


class Painter(linear_part.LinearPart):
    """Draws with OpenCV and with every global generator."""

    def batch(self, step: int) -> Any:
        picture = cv2.GaussianBlur(np.random.rand(512, 512).astype(np.float32), (31, 31), 0)
        return {"step": step, "picture": torch.from_numpy(cv2.resize(picture, (64, 64))), "noise": torch.randn(3)}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_steps_in_order(workers: int) -> None:
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2048, 2048), np.float32), (31, 31), 0)  # OpenCV's threads are up before the fork
    torch.ones(512, 512) @ torch.ones(512, 512)
    part = Painter(linear_part.Settings(), linear_part.PartContext(0, torch.device("cpu")))
    here = list(batches(part, 7, range(3, 8), workers=0, pin_memory=False))
    there = list(batches(part, 7, range(3, 8), workers=workers, pin_memory=False))
    assert [batch["step"] for batch in there] == [3, 4, 5, 6, 7]
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left["picture"], right["picture"])
        assert torch.equal(left["noise"], right["noise"])
    assert not torch.equal(here[0]["noise"], here[1]["noise"])


class Collector(linear_part.LinearPart):
    def batch(self, step: int) -> Any:
        return gc.collect()


class Freed:
    """Garbage in a cycle, which says in which process it is freed."""

    def __init__(self, place: Path) -> None:
        self.place, self.cycle = place, self

    def __del__(self) -> None:
        self.place.write_text(str(os.getpid()))


def test_a_forked_worker_frees_nothing_of_this_process(tmp_path: Path) -> None:
    """PyAV's frames in cycles would wait there for the threads of their scaler, which a fork has not: for ever."""
    part = Collector(linear_part.Settings(), linear_part.PartContext(0, torch.device("cpu")))
    gc.disable()
    try:
        Freed(tmp_path / "freed")
        list(batches(part, 7, range(2), workers=1, pin_memory=False))
    finally:
        gc.enable()
    assert (tmp_path / "freed").read_text() == str(os.getpid())


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_that_are_no_forks_give_the_same_batches(method: StartMethod) -> None:
    part = linear_part.LinearPart(linear_part.Settings(), linear_part.PartContext(0, torch.device("cpu")))
    assert_worker_has_all_but_networks(part)
    here = list(batches(part, 7, range(3, 7), workers=0, pin_memory=False))
    there = list(batches(part, 7, range(3, 7), workers=2, pin_memory=False, method=method))
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left["x"], right["x"])
        assert torch.equal(left["y"], right["y"])


def test_only_linux_forks() -> None:
    assert [start_method(1, "linux"), start_method(2, "linux")] == ["fork", "forkserver"]
    assert {start_method(count, system) for count in (1, 2) for system in ("win32", "darwin")} == {"spawn"}


WINDOWS = """
import multiprocessing.resource_tracker, signal, sys, types
import accelerate, cv2, pydantic, torch, linear_part  # as they are here; the trainer alone sees what Windows has
sys.modules["resource"] = sys.modules["fcntl"] = None
sys.modules["msvcrt"] = msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, lambda *given: sys.stdout.write(f"locked {given[1:]}\\n")
del signal.pthread_sigmask, multiprocessing.context.ForkServerContext
multiprocessing.resource_tracker._HAVE_SIGMASK = False
here, sys.platform = sys.platform, "win32"
import training.config, training.loop
sys.platform = here
for module in ("training.state", "training.speed"):
    sys.modules[module].sys = types.SimpleNamespace(platform="win32")
if __name__ == "__main__":
    run = {"name": "t", "steps": 2, "threads": 1, "workers": 1, "out": sys.argv[1], "trackers": []}
    sys.exit(training.loop.train(training.config.parse_config({"run": run, "part": {"name": "linear"}})))
"""


def test_a_run_where_windows_lacks_what_linux_has(tmp_path: Path) -> None:
    """Without fork, signal masks, fcntl and resource, with Windows' locks, and a worker that is a new process."""
    (tmp_path / "start.py").write_text(WINDOWS, encoding="utf-8")
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command = [sys.executable, str(tmp_path / "start.py"), str(tmp_path / "run")]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": places}, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == b"locked (2, 1)\n"
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in log] == [0, 1]
    assert all("peak_memory_gib" not in line for line in log)


def test_an_error_in_a_worker_arrives_with_its_place() -> None:
    class Broken(linear_part.LinearPart):
        def batch(self, step: int) -> Any:
            raise KeyError("no such thing")

    part = Broken(linear_part.Settings(), linear_part.PartContext(0, torch.device("cpu")))
    with pytest.raises(KeyError, match=r"in batch|no such thing"):
        next(batches(part, 0, range(2), workers=1, pin_memory=False))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_user_can_mend_arrives_in_its_own_words(workers: int) -> None:
    class Refusing(linear_part.LinearPart):
        def batch(self, step: int) -> Any:
            raise CheckpointError("No row of a batch can be read: a, b.")

    part = Refusing(linear_part.Settings(), linear_part.PartContext(0, torch.device("cpu")))
    with pytest.raises(CheckpointError, match=r"^No row of a batch can be read: a, b\.$"):
        next(batches(part, 0, range(2), workers=workers, pin_memory=False))


def test_a_process_that_forgets_its_iterator_still_ends() -> None:
    """Python ends left-over workers with SIGTERM at exit and waits: they must not outlive it."""
    script = (
        "import signal, torch, linear_part; from training.prefetch import batches\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)  # as the loop notes signals, before the workers fork\n"
        "part = linear_part.LinearPart(linear_part.Settings(), linear_part.PartContext(0, torch.device('cpu')))\n"
        "forgotten = batches(part, 7, range(100), workers=1, pin_memory=False)\n"
        "next(forgotten); kept = [forgotten, lambda: kept]; torch.forgotten = kept\n"
    )
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": places}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=600, check=False).returncode == 0


def test_to_device_keeps_the_structure() -> None:
    batch = {"a": [torch.ones(1), 3], "b": Pair(torch.ones(2), "x"), "c": (None, np.ones(1))}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert moved["a"][1] == 3
    assert isinstance(moved["b"], Pair)
    assert (moved["b"].left.device.type, moved["b"].right) == ("meta", "x")
    assert isinstance(moved["c"], tuple)
    assert moved["c"][1] is batch["c"][1]


RECORD = {"loss": 0.5, "lr": 1e-3, "samples_per_second": 12.0}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with ProgressDisplay("vae", 2, 4, every=1) as display:
        display.advance(3, RECORD)
        display.advance(4, RECORD)
    shown = terminal.getvalue()
    assert "vae: 100%" in shown
    assert "4/4" in shown
    assert "loss 0.5, lr 1.00e-03, 12 samples/s" in shown


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    with ProgressDisplay("vae", 0, 5, every=2) as display:
        for step in range(1, 6):
            display.advance(step, RECORD)
    steps = [record.getMessage().split(",")[0] for record in caplog.records]
    assert steps == ["vae: step 2 of 5", "vae: step 4 of 5", "vae: step 5 of 5"]
    assert caplog.records[-1].getMessage().endswith("00:00 left")


@pytest.mark.parametrize("before", [b"", b'{"step": 0}\n', b'{"step": 0}\n' * 9000])
@pytest.mark.parametrize("cut", [b"", b'{"st'])
def test_log_removes_a_cut_line(tmp_path: Path, before: bytes, cut: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(before + cut)
    with StepLog(path) as log:
        log.write({"step": 1, "loss": float("inf")})
    assert path.read_bytes() == before + b'{"step": 1, "loss": null}\n'


def test_a_full_disk_is_named_with_the_log(tmp_path: Path) -> None:
    """And the cut line is gone at the next start."""
    path = tmp_path / "log.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
    try:
        with StepLog(path) as log:
            log.write({"step": 0})
            with pytest.raises(OSError, match=r"log\.jsonl cannot be written: File too large"):
                log.write({"step": 1, "loss": 1 / 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == 30
    with StepLog(path):
        assert path.read_bytes() == b'{"step": 0}\n'
