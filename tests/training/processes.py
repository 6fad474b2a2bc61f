"""Runs in several processes on gloo, started as a launcher would, for the tests of them."""

import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimizer imports it at its first step: here once for all forks
from accelerate import PartialState
from torch.utils._pytree import tree_leaves

from training.config import TrainConfig, parse_config, save_config
from training.distributed import open_world
from training.parts.base import Part
from training.prefetch import _Batches, no_garbage_in_forks
from training.state import Checkpoint, CheckpointStore
from training.train import main
from training.trainer import Trainer, build_trainer

WORLD = 2
PATIENCE = 600  # seconds until a process counts as hanging; a busy machine is no failure
ROOT = Path(__file__).resolve().parents[2]


def make_config(out: Path, part: dict[str, Any], run: dict[str, Any] | None = None, **optim: Any) -> TrainConfig:
    fixed = {"name": "t", "steps": 6, "sample_every": 100, "threads": 1, "workers": 0, "out": out, "trackers": []}
    return parse_config({"run": fixed | (run or {}), "optim": {"warmup_steps": 0} | optim, "part": part})


def start(config: TrainConfig, world: int = WORLD, **environment: str) -> list[BaseProcess]:
    """Forks, two if nothing else is said, each as a launcher would start it."""
    assert config.run.out is not None
    path = config.run.out.with_suffix(".yaml")
    save_config(config, path)
    return _fork(_train, (path,), world, environment)


def _fork(target: Callable[..., None], given: tuple[Any, ...], world: int, environment: dict[str, str]) -> list[Any]:
    """Processes of a target, which gets its own environment behind what is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), **environment}
    fork = multiprocessing.get_context("fork")
    ranks = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    processes = [fork.Process(target=target, args=(*given, place)) for place in ranks]
    with no_garbage_in_forks():
        for process in processes:
            process.start()
    return processes


def in_each(act: Callable[[Trainer], Any], config: TrainConfig, **environment: str) -> Any:
    """What the first of two processes finds that act on the trainer of a configuration together."""
    queue = multiprocessing.get_context("fork").Queue()
    processes = _fork(_act, (act, config, queue), WORLD, environment)
    deadline = time.monotonic() + PATIENCE
    while queue.empty() and any(process.exitcode is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = None if queue.empty() else queue.get()
    finish(processes)
    return found


def _act(act: Callable[[Trainer], Any], config: TrainConfig, queue: Any, environment: dict[str, str]) -> None:
    PartialState._reset_state()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open_world() as world:
        found = act(build_trainer(config, None, world))
        if world.first:
            queue.put(found)


def _no_fork_in_a_group() -> None:
    """A fork would copy what the processes' connections have in use. Whatever a hook raises is ignored."""
    if torch.distributed.is_initialized():
        os.write(2, b"forked while the processes are connected\n")
        os._exit(70)


def _train(path: Path, environment: dict[str, str]) -> None:
    os.register_at_fork(before=_no_fork_in_a_group)
    # A tracker's state and a fork server are the tests' own process's; a launcher's processes have none
    PartialState._reset_state()
    vars(forkserver._forkserver).update(vars(forkserver.ForkServer()))
    os.environ.update(environment)
    sys.exit(main(["--config", str(path)]))


def finish(processes: Sequence[BaseProcess], code: int = 0) -> None:
    try:
        for process in processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [code] * len(processes)


def wait_for_lines(processes: Sequence[BaseProcess], out: Path, lines: int) -> None:
    log, deadline = out / "log.jsonl", time.monotonic() + PATIENCE
    while not log.exists() or log.read_text().count("\n") < lines:
        assert all(process.is_alive() for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_worker_has_all_but_networks(part: Part) -> None:
    """What a worker process that is no fork of the trainer gets: equal batches, and no module."""
    here = _Batches(part, 3)
    there = pickle.loads(pickle.dumps(here))
    assert any(isinstance(value, torch.nn.Module) for value in vars(part).values())
    assert not any(isinstance(value, torch.nn.Module) for value in vars(there._part).values())
    pairs = zip(tree_leaves(here[1]), tree_leaves(there[1]), strict=True)
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def load(out: Path, step: int) -> Checkpoint:
    store = CheckpointStore(out / "checkpoints")
    checkpoint = store.load_latest()
    assert checkpoint is not None
    assert checkpoint.progress.step == step
    return checkpoint


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor."""
    assert left.keys() == right.keys()
    assert left
    return max(((left[n] - right[n]).norm() / right[n].norm()).item() for n in right if right[n].norm() > 1e-6)


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def momentum_sgd(groups: Any, settings: Any) -> torch.optim.Optimizer:
    """After one step its buffer is the gradient."""
    return torch.optim.SGD([{**group, "lr_scale": 1.0} for group in groups], lr=settings.lr, momentum=0.5)


def accelerate_launches(configuration: str, run: Path, timeout: int) -> None:
    """Two steps by `accelerate launch` with one of training/launch's files, in two processes."""
    save_config(make_config(run, {"name": "shared"}, {"steps": 2}), run.with_suffix(".yaml"))
    command = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    command += ["--config_file", str(ROOT / "training/launch" / configuration), "--num_processes", "2"]
    script = [str(ROOT / "tests/training/shared_part.py"), "--config", str(run.with_suffix(".yaml"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *script], env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    assert load(run, 2).progress.world == 2
