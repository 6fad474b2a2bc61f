"""Several processes on gloo: they equal one, resume exactly, end together, and share a network out."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import linear_part
import pytest
import shared_part
import tiny_part
import torch
from processes import (
    PATIENCE,
    WORLD,
    accelerate_launches,
    difference,
    finish,
    in_each,
    load,
    make_config,
    momentum_sgd,
    read_log,
    start,
    wait_for_lines,
)
from safetensors.torch import load_file

import training.trainer
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer
from training.export import export_run
from training.loop import train
from training.randomness import rank_seed
from training.trainer import Trainer, build_trainer

assert {linear_part.__name__, shared_part.__name__, tiny_part.__name__}  # they list their parts


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.trainer, "make_optimizer", momentum_sgd)
    part = {"name": "shared", "batch_size": 8}
    for steps in (1, 5):
        one, two = (
            make_config(tmp_path / name, part, {"steps": steps}, lr=0.05, clip_norm=1e9, schedule="constant")
            for name in ("one", "two")
        )
        train(one)
        finish(start(two))
        alone, joint = load(tmp_path / "one", steps), load(tmp_path / "two", steps)
        if steps == 1:
            assert difference(joint.tensors["optimizer"], alone.tensors["optimizer"]) < 1e-6
        assert difference(joint.tensors["model"], alone.tensors["model"]) < 1e-6
    assert joint.progress.samples == alone.progress.samples == 40
    for left, right in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["mse"] == pytest.approx(right["mse"], rel=1e-5)


def test_accumulated_batches_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.trainer, "make_optimizer", momentum_sgd)
    part, run = {"name": "shared", "batch_size": 4}, {"steps": 3, "max_minutes": 1e-9}
    for _ in range(3):  # resumed at every step
        train(make_config(tmp_path / "parts", part, run, accumulate=2, lr=0.05, clip_norm=1e9))
    single = shared_part.SharedPart.batch
    monkeypatch.setattr(
        shared_part.SharedPart,
        "batch",
        lambda self, step: {"x": torch.cat([single(self, 2 * step + index)["x"] for index in range(2)])},
    )
    train(make_config(tmp_path / "whole", part, {"steps": 3}, lr=0.05, clip_norm=1e9))
    parts, whole = load(tmp_path / "parts", 3), load(tmp_path / "whole", 3)
    assert difference(parts.tensors["model"], whole.tensors["model"]) < 1e-6
    assert parts.progress.samples == whole.progress.samples == 24


def test_kill_9_of_both_and_resume(tmp_path: Path, caplog: Any) -> None:
    part = {"name": "linear", "seconds_a_step": 0.0}
    finish(start(make_config(tmp_path / "straight", part)))
    slow = make_config(tmp_path / "cut", part | {"seconds_a_step": 0.2}, {"save_every": 3})
    processes = start(slow)
    wait_for_lines(processes, tmp_path / "cut", 4)
    while not (tmp_path / "cut/checkpoints/latest").exists():  # a thread writes it
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    assert load(tmp_path / "cut", 3).progress.world == WORLD
    finish(start(slow))
    straight, resumed = load(tmp_path / "straight", 6), load(tmp_path / "cut", 6)
    for file, tensors in straight.tensors.items():
        assert all(torch.equal(tensor, resumed.tensors[file][name]) for name, tensor in tensors.items())
    longer = make_config(tmp_path / "cut", part | {"seconds_a_step": 0.2}, {"steps": 7})
    train(longer)
    assert "saved by 2 processes and goes on with 1 at step 6" in caplog.text
    assert "not bit for bit" in caplog.text
    assert [line["step"] for line in read_log(tmp_path / "cut")][-2:] == [5, 6]


def test_the_end_of_one_process_is_one_line_in_the_others(tmp_path: Path, capfd: Any) -> None:
    part = {"name": "shared", "seconds_a_step": 0.05}
    processes = start(make_config(tmp_path / "run", part, {"steps": 5000}), ACCELERATE_USE_FSDP="true")
    wait_for_lines(processes, tmp_path / "run", 2)
    processes[1].kill()
    processes[0].join(PATIENCE)
    assert processes[0].exitcode == 1
    written = capfd.readouterr().err
    assert written.count("train.py: Another process of this run has ended, or cannot be reached") == 1
    assert "Traceback" not in written


def test_one_that_is_not_finite_and_one_that_is_told_to_end(tmp_path: Path) -> None:
    part = {"name": "shared", "seconds_a_step": 0.1, "nan_steps": [1]}
    config = make_config(tmp_path / "run", part, {"steps": 1000, "save_every": 1000, "workers": 1})
    processes = start(config)
    wait_for_lines(processes, tmp_path / "run", 3)
    (tmp_path / "run" / "save").touch()
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + PATIENCE
    while not (checkpoints / "latest").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (tmp_path / "run" / "save").exists()
    assert all(process.is_alive() for process in processes)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGTERM)
    finish(processes, code=128 + signal.SIGTERM)
    log = read_log(tmp_path / "run")
    assert load(tmp_path / "run", len(log)).progress.skipped == 1
    assert [line["step"] for line in log if line.get("skipped")] == [1]
    assert sorted(log[1]["ids"]) == [f"row {number}" for number in range(4)]
    assert not (tmp_path / "run" / "export").exists()


def test_shares_of_a_network_equal_whole_ones(tmp_path: Path) -> None:
    """DDP and FSDP2 on the real blocks, with and without references; the second's run is resumed."""
    part, optim = {"name": "tiny"}, {"lr": 1e-3, "schedule": "constant"}
    finish(start(make_config(tmp_path / "whole", part, {"steps": 4}, **optim)))
    for steps in (2, 4):
        shares = make_config(tmp_path / "shares", part, {"steps": steps}, **optim)
        finish(start(shares, ACCELERATE_USE_FSDP="true"))
    whole, shares_found = load(tmp_path / "whole", 4), load(tmp_path / "shares", 4)
    for file in ("model", "ema", "optimizer"):
        assert difference(shares_found.tensors[file], whole.tensors[file]) < 1e-4, file
    samples = "samples/step-00000004/sample.safetensors"  # of the average, by all processes together
    assert difference(load_file(tmp_path / "shares" / samples), load_file(tmp_path / "whole" / samples)) < 1e-3
    export_run(tmp_path / "shares", tmp_path / "alone")  # by one process, which holds the network
    for name in ("transformer.safetensors", "record.json"):
        assert (tmp_path / "shares/export" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_shares_within_copies_equal_whole_networks(tmp_path: Path) -> None:
    """HSDP, two copies of two shares, and DDP on four; the former is resumed by two shares."""
    part, optim = {"name": "tiny"}, {"lr": 1e-3, "schedule": "constant"}
    finish(start(make_config(tmp_path / "whole", part, {"steps": 2}, **optim), 4))
    hybrid = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
    hybrid |= {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}
    shares = make_config(tmp_path / "shares", part, {"steps": 2}, **optim)
    finish(start(shares, 4, **hybrid))
    whole, found = load(tmp_path / "whole", 2), load(tmp_path / "shares", 2)
    for file in ("model", "ema", "optimizer"):
        assert difference(found.tensors[file], whole.tensors[file]) < 1e-4, file
    assert (tmp_path / "shares/export/transformer.safetensors").is_file()
    finish(start(shares, 2, **hybrid), code=2)  # two copies of two shares are not two processes
    finish(start(make_config(tmp_path / "shares", part, {"steps": 3}, **optim), 2, ACCELERATE_USE_FSDP="true"))
    assert load(tmp_path / "shares", 3).progress.world == 2


def test_a_lora_that_thaws_in_shares_equals_whole_ones(tmp_path: Path) -> None:
    """DDP and FSDP2, the latter resumed where the LoRA thaws."""
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    save_transformer(tmp_path / "start.safetensors", network, dtype=torch.float32)
    part = {"name": "tiny", "train": {"lora": {"rank": 2}, "thaw": {"*.lora_*": 2}}}
    optim = {"lr": 1e-3, "schedule": "constant"}
    found = []
    for name, starts, environment in (("whole", [3], {}), ("shares", [2, 3], {"ACCELERATE_USE_FSDP": "true"})):
        for steps in starts:
            config = make_config(tmp_path / name, part, {"steps": steps}, **optim)
            init = config.init.model_copy(update={"from_": tmp_path / "start.safetensors"})
            finish(start(config.model_copy(update={"init": init}), **environment))
        found.append(load(tmp_path / name, 3))
        assert (tmp_path / name / "export/lora.safetensors").is_file()
    whole, shares = found
    for file in ("model", "ema", "optimizer"):
        assert difference(shares.tensors[file], whole.tensors[file]) < 1e-4, file
    counts = {name: tensor for name, tensor in whole.tensors["optimizer"].items() if name.endswith("/step")}
    assert {int(count) for name, count in counts.items() if ".lora_" in name} == {1}
    assert max(counts.values()) > 1


def test_steps_in_which_nothing_trained_takes_part(tmp_path: Path) -> None:
    """Emphasize-Attention alone in steps without references, the second and the fourth: DDP and FSDP2."""
    part, optim = {"name": "tiny", "train": {"only": ["*emphasize*"]}}, {"lr": 1e-3, "schedule": "constant"}
    for name, environment in (("whole", {}), ("shares", {"ACCELERATE_USE_FSDP": "true"})):
        finish(start(make_config(tmp_path / name, part, {"steps": 5}, **optim), **environment))
        assert [line["grad_norm"] > 0 for line in read_log(tmp_path / name)] == [True, False, True, False, True]
    whole, shares = load(tmp_path / "whole", 5), load(tmp_path / "shares", 5)
    for file in ("model", "ema", "optimizer"):
        assert difference(shares.tensors[file], whole.tensors[file]) < 1e-4, file


def test_a_batch_that_is_not_finite_takes_those_before_it_along(tmp_path: Path) -> None:
    """The second of the second step's two, and the first of the last's, which is saved: DDP and FSDP2."""
    part, optim = {"name": "tiny", "nan_draws": [3, 6]}, {"lr": 1e-3, "schedule": "constant", "accumulate": 2}
    for name, environment in (("whole", {}), ("shares", {"ACCELERATE_USE_FSDP": "true"})):
        finish(start(make_config(tmp_path / name, part, {"steps": 4}, **optim), **environment))
    whole, shares = load(tmp_path / "whole", 4), load(tmp_path / "shares", 4)
    assert shares.progress.skipped == whole.progress.skipped == 2
    for file in ("model", "ema", "optimizer"):
        assert difference(shares.tensors[file], whole.tensors[file]) < 1e-4, file


def test_steps_in_whose_last_batch_nothing_trained_takes_part(tmp_path: Path) -> None:
    """Emphasize-Attention alone, with references in the first of each step's two batches: DDP and FSDP2."""
    part, optim = {"name": "tiny", "train": {"only": ["*emphasize*"]}}, {"lr": 1e-3, "accumulate": 2}
    for name, environment in (("whole", {}), ("shares", {"ACCELERATE_USE_FSDP": "true"})):
        finish(start(make_config(tmp_path / name, part, {"steps": 2}, **optim), **environment))
        assert [line["grad_norm"] > 0 for line in read_log(tmp_path / name)] == [True, True]
    whole, shares = load(tmp_path / "whole", 2), load(tmp_path / "shares", 2)
    for file in ("model", "ema", "optimizer"):
        assert difference(shares.tensors[file], whole.tensors[file]) < 1e-4, file


def test_references_in_one_process_only(tmp_path: Path) -> None:
    """Their parameters have no gradient in the other."""
    finish(start(make_config(tmp_path / "run", {"name": "tiny", "first_only": True}, {"steps": 2})))
    optimizer = load(tmp_path / "run", 2).tensors["optimizer"]
    assert optimizer["transformer.blocks.0.emphasize_attn.q.weight/exp_avg"].abs().max() > 0


def test_accelerate_launches_it(tmp_path: Path) -> None:
    accelerate_launches("ddp.yaml", tmp_path / "run", 200)


def test_seeds_of_processes() -> None:
    assert rank_seed(7, 0) == 7
    assert len({rank_seed(seed, rank) for seed in range(4) for rank in range(4)}) == 16


def _held_out(part: shared_part.SharedPart) -> Iterator[Any]:
    """Three batches, the first of which one process alone cannot read; without environment all can."""
    lost = {int(rank) for rank in os.environ.get("LOST_BY", "")}
    for step in range(3):
        x = torch.full((2, part.settings.width), 1.0 + step)
        yield None if part.context.rank in lost and (step == 0 or "LOST_ALL" in os.environ) else {"x": x}


def _validated(trainer: Trainer) -> Any:
    try:
        return trainer.validate()
    except CheckpointError as error:
        return str(error)


def test_a_held_out_row_that_one_process_cannot_read_is_left_out_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one would have computed it; the others keep the noise of their numbers."""
    monkeypatch.setattr(shared_part.SharedPart, "validation_batches", _held_out)
    config = make_config(tmp_path / "run", {"name": "shared"})
    assert _validated(build_trainer(config, None)) == pytest.approx(in_each(_validated, config), rel=1e-5)
    monkeypatch.setenv("LOST_BY", "0")
    expected = _validated(build_trainer(config, None))
    for rank in ("0", "1"):
        assert in_each(_validated, config, LOST_BY=rank) == pytest.approx(expected, rel=1e-5)
    nothing = in_each(_validated, config, LOST_BY="1", LOST_ALL="yes")
    assert nothing.startswith("None of the held-out rows can be read: run training/cache.py")
