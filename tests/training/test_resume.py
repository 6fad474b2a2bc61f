"""Exact resume: however a run is cut and continued, the weights, the EMA and the optimizer are the same bits."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import linear_part
import pytest
import torch
from safetensors.torch import load_file, save_file

from contextanyone_core.atomic_file import ENDING, PREFIX
from contextanyone_core.errors import CheckpointError, InputError
from training import state
from training.config import OptimSettings, TrainConfig, load_config, parse_config, save_config
from training.loop import train
from training.optim import make_optimizer, optimizer_tensors, restore_optimizer
from training.parts import PARTS, PartEntry
from training.parts.base import Metrics, PartContext
from training.prefetch import no_garbage_in_forks
from training.state import Checkpoint, CheckpointStore, Progress, only_trainer
from training.train import main

PATIENCE = 600  # seconds until a process counts as hanging; a busy machine is no failure
MAPPED: dict[str, type[linear_part.LinearPart]] = {}


class Settings(linear_part.Settings):
    name: Literal["mapped"] = "mapped"  # type: ignore[assignment]


def make_mapped(settings: Settings, context: PartContext) -> linear_part.LinearPart:
    return MAPPED["part"](settings, context)


PARTS["mapped"] = PartEntry(__name__, "make_mapped")


def make_config(out: Path, part: dict[str, Any] | None = None, **run: Any) -> TrainConfig:
    run = {"name": "t", "steps": 6, "save_every": 3, "sample_every": 100, "threads": 1, "workers": 0, "out": out} | run
    return parse_config({"run": run, "optim": {"warmup_steps": 2}, "part": {"name": "linear", **(part or {})}})


def latest(out: Path) -> Checkpoint:
    checkpoint = CheckpointStore(out / "checkpoints").load_latest()
    assert checkpoint is not None
    return checkpoint


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    assert asdict(left.progress) | {"seconds": 0} == asdict(right.progress) | {"seconds": 0}
    for file in ("model", "ema", "optimizer"):
        assert left.tensors[file].keys() == right.tensors[file].keys()
        assert left.tensors[file]
        for name, tensor in left.tensors[file].items():
            assert torch.equal(tensor, right.tensors[file][name]), (file, name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Six steps in one go."""
    out = tmp_path_factory.mktemp("straight")
    train(make_config(out))
    return latest(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_count_changes_nothing(tmp_path: Path, straight: Checkpoint, workers: int) -> None:
    train(make_config(tmp_path, workers=0, max_minutes=1e-9))
    train(make_config(tmp_path, workers=workers))
    assert_same(latest(tmp_path), straight)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_of_channels_last_weights_come_back_in_their_order(tmp_path: Path, name: str) -> None:
    """The VAE's kernels are channels-last, files are not, and a fused optimizer walks both memories side by side."""
    settings = OptimSettings(optimizer=name, lr=0.01)

    def steps(count: int, kernel: torch.Tensor, file: Path | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        trained = {"kernel": torch.nn.Parameter(kernel.contiguous(memory_format=torch.channels_last_3d))}
        optimizer = make_optimizer([{"params": list(trained.values())}], settings)
        if file is not None:
            restore_optimizer(optimizer, trained, load_file(file))
        for _ in range(count):
            trained["kernel"].grad = trained["kernel"].detach() ** 3
            optimizer.step()
        moments = {key: tensor.contiguous() for key, tensor in optimizer_tensors(optimizer, trained).items()}
        return trained["kernel"].detach().clone(), moments

    start = torch.randn(4, 3, 3, 3, 3)
    whole, _ = steps(4, start, None)
    half, moments = steps(2, start, None)
    save_file(moments, tmp_path / "optimizer.safetensors")
    resumed, _ = steps(2, half, tmp_path / "optimizer.safetensors")
    assert torch.equal(resumed, whole)


def test_sampling_and_saving_do_not_disturb(tmp_path: Path, straight: Checkpoint) -> None:
    train(make_config(tmp_path, save_every=1, sample_every=1, keep_last=3))
    assert_same(latest(tmp_path), straight)
    assert len(list((tmp_path / "samples").glob("*/sample.png"))) == 6
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["latest", "step-00000004", "step-00000005", "step-00000006"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000006\n"


def test_budget_stops_cleanly_and_goes_on(tmp_path: Path, straight: Checkpoint) -> None:
    starts = 0
    while not starts or latest(tmp_path).progress.step < 6:
        train(make_config(tmp_path, max_minutes=1e-9))
        starts += 1
        assert (tmp_path / "export" / "linear.safetensors").is_file()
    assert starts == 6
    assert_same(latest(tmp_path), straight)


class Started:
    """The command in a fork, which needs no second import of torch: a session of its own, its stderr in a file."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        save_config(config, folder / "start.yaml")
        self._errors = folder / "errors"
        words = ["--config", str(folder / "start.yaml")]
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(words,))
        with no_garbage_in_forks():
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _run(self, words: list[str]) -> None:
        os.setsid()
        os.dup2(os.open(self._errors, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        logging.getLogger().handlers.clear()  # pytest's
        sys.exit(main(words))

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert self._process.is_alive(), self._errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for_step(self, out: Path, lines: int) -> None:
        log = out / "log.jsonl"
        self.wait_for(lambda: log.exists() and log.read_text().count("\n") >= lines)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self) -> tuple[int | None, str]:
        """The exit code, and what was written to stderr."""
        self._process.join(PATIENCE)
        return self._process.exitcode, self._errors.read_text()


SLOW = {"seconds_a_step": 0.3}


def test_kill_9_and_resume(tmp_path: Path, straight: Checkpoint) -> None:
    out = tmp_path / "run"
    config = make_config(out, SLOW, workers=1)
    process = Started(config, tmp_path)
    process.wait_for_step(out, 4)
    with pytest.raises(InputError, match="Another process is training in"):
        train(config)
    process.wait_for((out / "checkpoints/latest").exists)  # a thread writes it
    process.kill()
    assert latest(out).progress.step == 3
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # a line cut by the kill
    train(config)
    assert_same(latest(out), straight)
    lines = (out / "log.jsonl").read_text().splitlines()
    assert lines[-1].startswith('{"step": 5,')
    assert all(line.endswith("}") for line in lines)


def _signal_all(pid: int, number: signal.Signals) -> None:
    """To the group, as a terminal and torchrun do, and to every process that it started, as Slurm does."""
    workers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert workers
    assert {os.getpgid(worker) for worker in workers} == {pid}
    os.killpg(pid, number)
    for worker in workers:
        os.kill(worker, number)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes as Linux does")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_the_whole_group_saves(
    tmp_path: Path, straight: Checkpoint, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    config = make_config(out, SLOW, workers=1, save_every=100)
    process = Started(config, tmp_path)
    process.wait_for_step(out, 2)
    _signal_all(process.pid, number)
    ended, errors = process.end()
    assert ended == code, errors
    assert "Traceback" not in errors
    assert "the same command resumes the run" in errors
    assert 2 <= latest(out).progress.step < 6
    assert not (out / "export").exists()
    train(config)
    assert_same(latest(out), straight)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EAGAIN])
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, code: int
) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(state.fcntl, "lockf", lockf)
    if code == errno.EAGAIN:
        with pytest.raises(InputError, match="Another process is training in"), only_trainer(tmp_path):
            pass
    else:
        with only_trainer(tmp_path):
            assert f"cannot be locked ({os.strerror(code)})" in caplog.text


def test_changed_settings_are_refused_by_name(tmp_path: Path) -> None:
    train(make_config(tmp_path, steps=2))
    with pytest.raises(InputError, match=r"other settings \(part.width, run.seed\).*choose another run\.out"):
        train(make_config(tmp_path, {"width": 9}, steps=2, seed=4))
    train(make_config(tmp_path, steps=4, save_every=1, keep_last=1, workers=1))
    assert latest(tmp_path).progress.step == 4
    assert load_config(tmp_path / "config.yaml").run.steps == 4


def test_the_learning_rate_may_change(tmp_path: Path, caplog: Any) -> None:
    """It is logged, and every later checkpoint and export state from which step on."""
    straight = make_config(tmp_path, steps=2)
    train(straight)
    assert latest(tmp_path).progress.learning_rates == {"0": 1e-4}
    longer = straight.run.model_copy(update={"steps": 4})
    slower = straight.optim.model_copy(update={"lr": 5e-5, "schedule": "cosine"})
    train(straight.model_copy(update={"run": longer, "optim": slower}))
    assert "optim.lr is 5e-05 from step 2 on; it was 0.0001." in caplog.text
    assert latest(tmp_path).progress.learning_rates == {"0": 1e-4, "2": 5e-5}
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates[1] == 1e-4
    assert rates[2] == 5e-5
    record = json.loads((tmp_path / "export/record.json").read_text())
    assert record["learning_rates"] == {"0": 1e-4, "2": 5e-5}
    caplog.clear()
    train(straight.model_copy(update={"run": longer.model_copy(update={"steps": 5}), "optim": slower}))
    assert "optim.lr is" not in caplog.text


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists a process's mapped files")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_lets_go_of_its_checkpoint(tmp_path: Path, optimizer: str) -> None:
    """A mapped file stays on the disk, however long ago it was removed, until the run ends."""
    mapped: list[str] = []

    class Mapped(linear_part.LinearPart):
        def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Metrics]:
            mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line)
            return super().loss(batch, step, generator)

    MAPPED["part"] = Mapped
    config = make_config(tmp_path, {"name": "mapped"}, steps=2)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"optimizer": optimizer})})
    train(config)
    train(config.model_copy(update={"run": config.run.model_copy(update={"steps": 4})}))
    assert latest(tmp_path).progress.step == 4
    assert mapped == []


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """As on NFS, where a file that is open somewhere keeps its folder from being removed."""

    def busy(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    with monkeypatch.context() as nfs:
        nfs.setattr(os, "rmdir", busy)
        train(make_config(tmp_path, save_every=2, keep_last=1))
    assert f"checkpoints/step-00000002 cannot be removed: {os.strerror(errno.ENOTEMPTY)}" in caplog.text
    assert latest(tmp_path).progress.step == 6
    train(make_config(tmp_path, save_every=2, keep_last=1, steps=8))
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000008"]


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, straight: Checkpoint, caplog: Any) -> None:
    train(make_config(tmp_path))
    weights = tmp_path / "checkpoints/step-00000006/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    assert latest(tmp_path).progress.step == 3
    assert "step-00000006 is damaged: model.safetensors does not have the checksum" in caplog.text
    train(make_config(tmp_path))
    assert_same(latest(tmp_path), straight)


def test_damaged_later_checkpoint_does_not_push_out_good_ones(tmp_path: Path) -> None:
    train(make_config(tmp_path, save_every=2))
    (tmp_path / "checkpoints/step-00000006/state.json").write_text("{")
    train(make_config(tmp_path, max_minutes=1e-9, keep_last=1))
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000005"]


def test_only_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    train(make_config(tmp_path, steps=2))
    (tmp_path / "checkpoints/step-00000002/ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"All checkpoints in .* are damaged"):
        train(make_config(tmp_path, steps=2))


def test_remains_of_a_kill_while_saving_are_ignored_and_removed(tmp_path: Path, straight: Checkpoint) -> None:
    train(make_config(tmp_path, max_minutes=1e-9))
    remains = tmp_path / f"checkpoints/{PREFIX}0a1b{ENDING}/written/step-00000002"
    remains.mkdir(parents=True)
    (remains / "model.safetensors").write_bytes(b"half")
    train(make_config(tmp_path))
    assert not remains.parents[1].exists()
    assert_same(latest(tmp_path), straight)


def test_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1)
    tensors = {"model": {"w": torch.ones(20_000)}, "ema": {}, "optimizer": {}}
    store.save(Progress(step=1), tensors)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            store.save(Progress(step=2), tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step-00000001"]
    checkpoint = store.load_latest()
    assert checkpoint is not None
    assert checkpoint.progress.step == 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process as Linux does")
def test_a_disk_that_fills_up_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """From the first checkpoint on no file may grow beyond 10 kB, so the second one cannot be written."""
    out, part = tmp_path / "run", SLOW | {"width": 64}
    config = make_config(out, part, trackers=[])
    process = Started(config, tmp_path)
    process.wait_for((out / "checkpoints" / "latest").exists)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    ended, errors = process.end()
    assert ended == 1, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    assert "model.safetensors cannot be written" in last
    assert "Traceback" not in errors
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["latest", "step-00000003"]
    assert latest(out).progress.step == 3
    assert not (out / "export").exists()
    train(config)
    train(make_config(tmp_path / "straight", part, trackers=[]))
    assert_same(latest(out), latest(tmp_path / "straight"))


def test_warm_start_and_its_resume(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "w.safetensors"
    context = linear_part.PartContext(0, torch.device("cpu"))
    part = linear_part.LinearPart(linear_part.Settings(), context)
    save_file(part.net.state_dict(), weights)
    config = make_config(tmp_path / "run").model_dump(by_alias=True)
    config["init"] = {"from": weights}
    config["optim"]["lr"] = 1e-12
    warm = parse_config({**config, "run": {**config["run"], "max_minutes": 1e-9}})
    train(warm)
    trained = latest(tmp_path / "run").tensors["model"]["net.0.weight"]
    assert torch.allclose(trained, part.net[0].weight, atol=1e-6)
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    train(warm)  # the checkpoint's tensors count, not the file's
    assert latest(tmp_path / "run").progress.step == 2
    assert torch.allclose(latest(tmp_path / "run").tensors["model"]["net.0.weight"], trained, atol=1e-6)
    weights.unlink()
    with pytest.raises(InputError, match=r"init\.from is .* which is not a file"):
        train(warm.model_copy(update={"run": warm.run.model_copy(update={"out": tmp_path / "new"})}))
