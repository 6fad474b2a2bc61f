"""DeepSpeed's ZeRO in two processes on gloo: it equals one process, resumes exactly and skips as all do."""

import sys
from pathlib import Path
from typing import Any

import linear_part
import pytest
import shared_part
import tiny_part
import torch
from processes import (
    WORLD,
    accelerate_launches,
    difference,
    finish,
    load,
    make_config,
    momentum_sgd,
    read_log,
    start,
    wait_for_lines,
)

import training.trainer
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer
from training.distributed import open_world
from training.loop import train

assert {linear_part.__name__, shared_part.__name__, tiny_part.__name__}  # they list their parts
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}


@pytest.fixture
def zero() -> dict[str, str]:
    """The environment of ZeRO-2. What is imported here, the processes need not import each."""
    ops = pytest.importorskip("deepspeed", reason="DeepSpeed is not installed").ops
    vars(ops).setdefault("__compatible_ops__", {})  # none of its kernels is compiled
    return ZERO


def same(left: dict[str, dict[str, torch.Tensor]], right: dict[str, dict[str, torch.Tensor]]) -> None:
    assert left.keys() == right.keys()
    for file, tensors in left.items():
        assert tensors.keys() == right[file].keys()
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor, right[file][name])] == []


@pytest.mark.parametrize("stage", ["1", "2"])
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: Any, stage: str) -> None:
    monkeypatch.setattr(training.trainer, "make_optimizer", momentum_sgd)
    part = {"name": "shared", "batch_size": 8}
    for steps in (1, 5):
        one, two = (
            make_config(tmp_path / name, part, {"steps": steps}, lr=0.05, schedule="constant")
            for name in ("one", "two")
        )
        train(one)
        finish(start(two, **zero, ACCELERATE_DEEPSPEED_ZERO_STAGE=stage))
        alone, joint = load(tmp_path / "one", steps), load(tmp_path / "two", steps)
        if steps == 1:
            assert difference(joint.tensors["optimizer"], alone.tensors["optimizer"]) < 1e-6
        assert difference(joint.tensors["model"], alone.tensors["model"]) < 1e-6
    for left, right in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-5)
        assert left["grad_norm"] > 1  # so it was clipped
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


def test_the_real_blocks_as_in_whole_networks(tmp_path: Path, zero: Any) -> None:
    """AdamW, accumulated batches, steps with and without references; resumed by ZeRO, then by FSDP2."""
    part, optim = {"name": "tiny"}, {"lr": 1e-3, "schedule": "constant", "accumulate": 2}
    finish(start(make_config(tmp_path / "whole", part, {"steps": 5}, **optim)))
    for steps, environment in ((2, zero), (4, zero), (5, {"ACCELERATE_USE_FSDP": "true"})):
        finish(start(make_config(tmp_path / "shares", part, {"steps": steps}, **optim), **environment))
        assert (tmp_path / "shares/export/transformer.safetensors").is_file()
    whole, shares = load(tmp_path / "whole", 5), load(tmp_path / "shares", 5)
    for file in ("model", "ema", "optimizer"):
        assert difference(shares.tensors[file], whole.tensors[file]) < 1e-4, file


def test_kill_9_of_both_and_resume(tmp_path: Path, zero: Any) -> None:
    part = {"name": "linear", "seconds_a_step": 0.0}
    finish(start(make_config(tmp_path / "straight", part), **zero))
    slow = make_config(tmp_path / "cut", part | {"seconds_a_step": 0.3}, {"save_every": 3, "sample_every": 2})
    processes = start(slow, **zero)
    wait_for_lines(processes, tmp_path / "cut", 4)
    for process in processes:
        process.kill()
        process.join()
    assert load(tmp_path / "cut", 3).progress.world == WORLD
    finish(start(slow, **zero))
    same(load(tmp_path / "straight", 6).tensors, load(tmp_path / "cut", 6).tensors)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_it_goes_on_in_another_number_of_processes(tmp_path: Path, zero: Any, caplog: Any) -> None:
    part = {"name": "shared", "batch_size": 12}
    for steps, world in ((2, 2), (3, 3)):
        finish(start(make_config(tmp_path / "run", part, {"steps": steps}, schedule="constant"), world, **zero))
    train(make_config(tmp_path / "run", part, {"steps": 4}, schedule="constant"))
    assert "saved by 3 processes and goes on with 1 at step 3" in caplog.text
    train(make_config(tmp_path / "one", part, {"steps": 4}, schedule="constant"))
    for file in ("model", "ema"):
        assert difference(load(tmp_path / "run", 4).tensors[file], load(tmp_path / "one", 4).tensors[file]) < 1e-4


@pytest.mark.parametrize("bad", [{"nan_steps": [2]}, {"nan_gradient_steps": [2]}])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, zero: Any, bad: dict[str, Any]) -> None:
    part: dict[str, Any] = {"name": "shared" if "nan_steps" in bad else "linear"} | bad
    run = {"save_every": 1, "keep_last": 9}
    finish(start(make_config(tmp_path / "run", part, run | {"steps": 2}, accumulate=1), **zero))
    before = load(tmp_path / "run", 2)
    finish(start(make_config(tmp_path / "run", part, run | {"steps": 3}, accumulate=1), **zero))
    after = load(tmp_path / "run", 3)
    assert after.progress.skipped == 1
    for file, tensors in before.tensors.items():
        changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, after.tensors[file][name])]
        assert [name for name in changed if "running_" not in name and "num_batches" not in name] == []
    if "nan_steps" in bad:
        assert sorted(read_log(tmp_path / "run")[2]["ids"]) == [f"row {number}" for number in range(4)]
    finish(start(make_config(tmp_path / "run", part, run | {"steps": 5}, accumulate=1), **zero))
    assert load(tmp_path / "run", 5).progress.skipped == 1


def test_a_step_given_up_between_its_batches(tmp_path: Path, zero: Any) -> None:
    """What the first batch left behind is not in the next step: two processes equal one."""
    part = {"name": "shared", "batch_size": 8, "nan_steps": [3]}
    one, two = (make_config(tmp_path / name, part, {"steps": 4}, accumulate=2) for name in ("one", "two"))
    train(one)
    finish(start(two, **zero))
    alone, joint = load(tmp_path / "one", 4), load(tmp_path / "two", 4)
    assert alone.progress.skipped == joint.progress.skipped == 1
    for file in ("model", "ema", "optimizer"):
        assert difference(joint.tensors[file], alone.tensors[file]) < 1e-4


def test_a_lora_that_thaws(tmp_path: Path, zero: Any) -> None:
    """ZeRO, resumed where the LoRA thaws, and DDP; in bf16."""
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    save_transformer(tmp_path / "start.safetensors", network, dtype=torch.float32)
    part = {"name": "tiny", "train": {"lora": {"rank": 2}, "thaw": {"*.lora_*": 2}}}
    optim = {"lr": 1e-3, "schedule": "constant"}
    found = []
    for name, starts, environment in (("whole", [3], {}), ("shares", [2, 3], zero)):
        for steps in starts:
            config = make_config(tmp_path / name, part, {"steps": steps}, **optim)
            init = config.init.model_copy(update={"from_": tmp_path / "start.safetensors"})
            finish(start(config.model_copy(update={"init": init, "precision": "bf16"}), **environment))
        found.append(load(tmp_path / name, 3))
    whole, shares = found
    for file in ("model", "ema", "optimizer"):
        assert difference(shares.tensors[file], whole.tensors[file]) < 1e-4, file
    counts = {name: tensor for name, tensor in shares.tensors["optimizer"].items() if name.endswith("/step")}
    assert {int(count) for name, count in counts.items() if ".lora_" in name} == {1}


def test_references_in_one_process_only_are_refused(tmp_path: Path, zero: Any) -> None:
    config = make_config(tmp_path / "run", {"name": "tiny", "first_only": True}, {"steps": 2})
    finish(start(config, **zero), code=2)


def test_without_deepspeed_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    finish(start(make_config(tmp_path / "run", {"name": "shared"}), **ZERO), code=2)
    assert 'DeepSpeed is not installed: pip install -e ".[deepspeed]".' in capfd.readouterr().err


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path: Path, zero: Any) -> None:
    accelerate_launches("deepspeed.yaml", tmp_path / "run", 900)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "stage 3; 1 and 2 are supported.*fsdp2.yaml"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload to cpu"),
        ({"file": '{"gradient_clipping": 0.5}'}, "sets gradient_clipping: of DeepSpeed's settings only"),
        ({"file": '{"zero_optimization": {"zenflow": {}}}'}, "sets zenflow: of DeepSpeed's settings only"),
        ({"file": "[]"}, "cannot be read as DeepSpeed's JSON"),
    ],
)
def test_what_it_does_not_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    if "file" in settings:
        (tmp_path / "ds.json").write_text(settings["file"])
        settings = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")}
    for name, value in (ZERO | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), open_world():
        pass
