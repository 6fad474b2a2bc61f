"""The loop: steps that are not finite, the log, precision, the EMA, the learning rate, export."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import linear_part
import pytest
import shared_part
import tiny_part
import torch
from safetensors.torch import load_file

from contextanyone_core.errors import CheckpointError, InputError, ShapeError
from contextanyone_core.weights.checkpoint import read_header
from training.config import OptimSettings, TrainConfig, config_hash, parse_config
from training.ema import Ema
from training.export import main as export_main
from training.loop import train
from training.optim import learning_rate, make_optimizer, set_learning_rate
from training.randomness import numpy_generator, seed_for, torch_generator
from training.state import CheckpointStore
from training.stopping import TrainingStopped
from training.trainer import VALIDATION_SIGMAS, build_trainer

assert {shared_part.__name__, tiny_part.__name__}  # they list their parts


def make_config(out: Path, part: dict[str, Any] | None = None, **top: Any) -> TrainConfig:
    run = {"name": "t", "steps": 6, "threads": 1, "workers": 0, "out": out} | top.pop("run", {})
    return parse_config({"run": run, "part": {"name": "linear", **(part or {})}, **top})


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["nan_steps", "nan_gradient_steps"])
def test_a_step_that_is_not_finite_changes_no_weight(tmp_path: Path, kind: str) -> None:
    trainer = build_trainer(make_config(tmp_path, {kind: [1, 2]}), None)
    trainer.step(trainer.part.batch(0))
    trained = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
    ema = {name: tensor.clone() for name, tensor in trainer.ema.tensors.items()}
    for _ in range(2):
        assert trainer.step(trainer.part.batch(trainer.progress.step))["skipped"]
    assert all(torch.equal(parameter, trained[name]) for name, parameter in trainer.trained.items())
    assert all(torch.equal(tensor, ema[name]) for name, tensor in trainer.ema.tensors.items())
    assert (trainer.progress.skipped, trainer.progress.skipped_in_a_row, trainer.progress.step) == (2, 2, 3)
    assert "skipped" not in trainer.step(trainer.part.batch(3))
    assert (trainer.progress.skipped, trainer.progress.skipped_in_a_row) == (2, 0)
    assert not torch.equal(trainer.trained["net.0.weight"], trained["net.0.weight"])


def test_ten_in_a_row_stop_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"nan_steps": list(range(4, 40))}, run={"steps": 40, "save_every": 4})
    with pytest.raises(TrainingStopped, match="Stopped at step 14: 10 steps in a row were not finite"):
        train(config)
    checkpoint = CheckpointStore(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors["model"].values())
    log = read_log(tmp_path)
    assert [line["step"] for line in log if line.get("skipped")] == list(range(4, 14))
    assert log[4]["loss"] is None


DIVERGES = {"lr": 1e-3, "warmup_steps": 0, "schedule": "constant", "lr_factors": {13: 1e34}}


def diverging(out: Path, **run: Any) -> TrainConfig:
    """Step 13 is finite, and so are the weights that it leaves, but no step with them is."""
    return make_config(out, run={"steps": 60, "save_every": 5} | run, optim=DIVERGES)


def largest(folder: Path) -> float:
    return load_file(folder / "model.safetensors")["net.3.weight"].abs().max().item()


def test_diverged_weights_replace_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="Stopped at step 24"):
        train(diverging(tmp_path))
    kept = CheckpointStore(tmp_path / "checkpoints").names()
    assert kept == ["step-00000005", "step-00000010"]
    assert largest(tmp_path / "checkpoints" / kept[-1]) < 10
    calmer = DIVERGES | {"lr": 1e-37}
    assert train(make_config(tmp_path, run={"steps": 60, "save_every": 5}, optim=calmer)) is None
    assert largest(tmp_path / "checkpoints/step-00000060") < 10


def test_a_save_of_steps_that_are_not_finite_removes_none(tmp_path: Path) -> None:
    """Here the last step; the same command with more steps begins to count anew and names what must go."""
    train(diverging(tmp_path, steps=17))
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.names() == ["step-00000005", "step-00000010", "step-00000017"]
    with pytest.raises(TrainingStopped, match=r"at step 27: 10 steps .* step-00000017 has the weights of these steps"):
        train(diverging(tmp_path))
    assert largest(tmp_path / "checkpoints" / store.names()[-2]) < 10


def test_a_save_that_was_due_is_made_at_the_next_finite_step(tmp_path: Path) -> None:
    train(make_config(tmp_path, {"nan_steps": [3, 4]}, run={"steps": 7, "save_every": 4}))
    assert CheckpointStore(tmp_path / "checkpoints").names() == ["step-00000006", "step-00000007"]


def test_log_has_one_line_per_step(tmp_path: Path) -> None:
    train(make_config(tmp_path))
    train(make_config(tmp_path, run={"steps": 8}))
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == list(range(8))
    assert log[0].keys() == {
        "step",
        "loss",
        "mse",
        "pid",
        "lr",
        "grad_norm",
        "samples_per_second",
        "peak_memory_gib",
        "data_wait",
        "seconds",
    }
    assert log[3]["loss"] == pytest.approx(log[3]["mse"])


def test_bf16_runs_under_autocast(tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = build_trainer(make_config(tmp_path, precision=precision), None)
        losses.append(trainer.step(trainer.part.batch(0))["loss"])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.trained.values())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_it_learns(tmp_path: Path) -> None:
    optim = {"lr": 0.02, "warmup_steps": 10, "clip_norm": 100, "ema_decay": 0.9}
    train(make_config(tmp_path, {"batch_size": 32}, run={"steps": 300, "save_every": 300}, optim=optim))
    log = read_log(tmp_path)
    assert sum(line["mse"] for line in log[-20:]) < 0.25 * sum(line["mse"] for line in log[:20])


def test_export_is_the_ema_with_its_record(tmp_path: Path) -> None:
    config = make_config(tmp_path, run={"seed": 5})
    train(config)
    checkpoint = CheckpointStore(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    exported = load_file(tmp_path / "export/linear.safetensors")
    assert torch.equal(exported["0.weight"], checkpoint.tensors["ema"]["net.0.weight"].half())
    assert not torch.equal(checkpoint.tensors["ema"]["net.0.weight"], checkpoint.tensors["model"]["net.0.weight"])
    record = json.loads((tmp_path / "export/record.json").read_text())
    assert record.pop("seconds") >= 0
    assert record == {
        "name": "t",
        "part": "linear",
        "steps": 6,
        "samples": 24,
        "seed": 5,
        "config_hash": config_hash(config),
    }


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    """However long the training took, and in how many starts."""
    for out, starts in ((tmp_path / "once", [2]), (tmp_path / "twice", [1, 2])):
        for steps in starts:
            config = make_config(out, {"name": "tiny"}, run={"steps": steps}, optim={"schedule": "constant"})
            train(config)
    once, twice = (out / "export" for out in (tmp_path / "once", tmp_path / "twice"))
    assert (
        once.joinpath("transformer.safetensors").read_bytes() == twice.joinpath("transformer.safetensors").read_bytes()
    )
    seconds = [json.loads((out / "record.json").read_text())["seconds"] for out in (once, twice)]
    assert min(seconds) > 0
    header = read_header(once / "transformer.safetensors").metadata
    assert json.loads(header["record"])["steps"] == 2
    assert list(header) == sorted(header)


def test_export_command_leaves_the_gpu_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_config(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        assert export_main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0


def test_export_command_reads_a_run(tmp_path: Path, capsys: Any) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert export_main([str(run), "--out", str(out)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    train(make_config(run))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert export_main([str(run), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert (out / "linear.safetensors").read_bytes() == (run / "export/linear.safetensors").read_bytes()
    for path in (run / "checkpoints").rglob("optimizer.safetensors"):  # twice the weights' size, and not exported
        path.unlink()
    assert export_main([str(run), "--out", str(out)]) == 0
    assert export_main([str(run), "--out", str(run / "config.yaml")]) == 2
    assert "config.yaml cannot be written to: File exists" in capsys.readouterr().err
    (run / "checkpoints").rename(run / "gone")
    assert export_main([str(run), "--out", str(out)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    train(make_config(tmp_path))
    checkpoint = CheckpointStore(tmp_path / "checkpoints").load_latest()
    with pytest.raises(CheckpointError, match=r"model: \d+ tensors do not fit this part, such as net\.0\.bias"):
        build_trainer(make_config(tmp_path, {"width": 9}), checkpoint)


def test_loss_must_be_per_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_part.LinearPart, "loss", lambda self, batch, step, generator: (batch["x"].mean(), {}))
    trainer = build_trainer(make_config(tmp_path), None)
    with pytest.raises(ShapeError, match=r"loss has shape \(\); it must be \(B,\)"):
        trainer.step(trainer.part.batch(0))


def test_parameters_outside_the_groups_stay_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        linear_part.LinearPart, "parameter_groups", lambda self: [{"params": [self.net[0].weight], "lr_scale": 2.0}]
    )
    trainer = build_trainer(make_config(tmp_path), None)
    assert list(trainer.trained) == ["net.0.weight"]
    fixed = trainer.modules["net"].state_dict()["3.weight"].clone()
    trainer.step(trainer.part.batch(0))
    assert torch.equal(trainer.modules["net"].state_dict()["3.weight"], fixed)


def test_modes_and_weights_return_after_sampling(tmp_path: Path) -> None:
    trainer = build_trainer(make_config(tmp_path), None)
    trainer.step(trainer.part.batch(0))
    trainer.modules["net"][1].eval()  # type: ignore[index]  # a layer that the part keeps fixed
    before = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
    with trainer.shown():
        assert torch.equal(trainer.trained["net.0.weight"], trainer.ema.tensors["net.0.weight"])
        assert not trainer.modules["net"].training
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.trained.items())
    assert [module.training for module in trainer.modules["net"].children()] == [True, False, True, True]


def test_a_validation_repeats_and_changes_nothing(tmp_path: Path) -> None:
    part = {"name": "shared"}
    train(make_config(tmp_path / "plain", part))
    train(make_config(tmp_path / "validated", part, run={"validate_every": 2}))
    plain, validated = (
        CheckpointStore(tmp_path / name / "checkpoints").load_latest() for name in ("plain", "validated")
    )
    assert plain is not None
    assert validated is not None
    for file, tensors in plain.tensors.items():
        assert all(torch.equal(tensor, validated.tensors[file][name]) for name, tensor in tensors.items())
    lines = [json.loads(line) for line in (tmp_path / "validated/validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[0].keys() == {"step", "video"} | {f"video_at_{sigma}" for sigma in VALIDATION_SIGMAS}
    assert lines[0]["video"] == pytest.approx(sum(lines[0][f"video_at_{s}"] for s in VALIDATION_SIGMAS) / 5)
    trainer = build_trainer(make_config(tmp_path, part), validated)
    assert {"step": 6, **trainer.validate()} == lines[2] == {"step": 6, **trainer.validate()}
    with pytest.raises(InputError, match="the part linear has no held-out data"):
        train(make_config(tmp_path / "no", run={"validate_every": 2}))


@pytest.mark.parametrize(("run", "step"), [({"save_every": 2}, 2), ({"steps": 2}, 2)])
def test_a_validation_that_fails_loses_no_step_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: dict[str, int], step: int
) -> None:
    def fails(self: shared_part.SharedPart, *given: Any) -> None:
        raise InputError("The held-out data are gone.")

    monkeypatch.setattr(shared_part.SharedPart, "validation_loss", fails)
    with pytest.raises(InputError, match="are gone"):
        train(make_config(tmp_path, {"name": "shared"}, run={"validate_every": 2} | run))
    checkpoint = CheckpointStore(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    assert checkpoint.progress.step == step


def test_samples_of_a_bf16_run_are_made_in_bf16_on_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def autocast(device: str, dtype: torch.dtype, *, enabled: bool) -> Any:
        asked.append((device, dtype, enabled))
        return nullcontext()

    monkeypatch.setattr("training.trainer.autocast", autocast)
    trainer = build_trainer(make_config(tmp_path, precision="bf16"), None)
    trainer.sample(tmp_path)
    trainer.device = torch.device("cuda")
    trainer.sample(tmp_path)
    assert asked == [("cpu", torch.bfloat16, False), ("cuda", torch.bfloat16, True)]


def test_bf16_keeps_tiny_updates(tmp_path: Path) -> None:
    """Weights near 1 and updates of 1e-5, far below bf16's spacing there of 2**-8: float32 weights keep every one."""
    optim = {"lr": 1e-5, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0}
    trainer = build_trainer(make_config(tmp_path, precision="bf16", optim=optim), None)
    weight = trainer.trained["net.0.weight"]
    weight.data.fill_(1.0)
    for step in range(20):
        trainer.step(trainer.part.batch(step))
    moved = (weight.detach() - 1.0).abs()
    assert moved.max() > 1e-4
    assert torch.equal(weight.detach().bfloat16(), torch.ones_like(weight, dtype=torch.bfloat16))


def test_ema_formula() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({"w": weight}, decay=0.5)
    expected = 0.0
    for n, value in enumerate((1.0, 2.0, 3.0), start=1):
        weight.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.tensors["w"].tolist() == pytest.approx([expected] * 3)
    exact = Ema({"w": weight}, decay=0.0)
    weight.data.fill_(0.1)
    exact.update()
    assert torch.equal(exact.tensors["w"], weight)


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_learning_rate(schedule: str, middle: float) -> None:
    settings = OptimSettings.model_validate(
        {"lr": 2.0, "warmup_steps": 10, "final_lr_fraction": 0.1, "schedule": schedule}
    )
    rates = [learning_rate(settings, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * middle)
    assert rates[110] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    assert math.isfinite(learning_rate(settings, 500, 5))


def test_groups_scale_the_rate_and_choose_the_decay() -> None:
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(
        [{"params": [first], "lr_scale": 0.5, "weight_decay": 0.0}, {"params": [second]}],
        OptimSettings.model_validate({"weight_decay": 0.3}),
    )
    set_learning_rate(optimizer, 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.05, 0.0), (0.1, 0.3)]


def test_seeds_differ_by_every_argument() -> None:
    seeds = {seed_for(seed, step, purpose) for seed in range(3) for step in range(3) for purpose in ("a", "b")}
    assert len(seeds) == 18
    assert seed_for(1, 2, "noise") == 1429316232501274746
    assert torch.rand(1, generator=torch_generator(1, 2, "a")) == torch.rand(1, generator=torch_generator(1, 2, "a"))
    assert numpy_generator(1, 2, "a").random() == numpy_generator(1, 2, "a").random()


def test_an_average_that_a_signal_leaves_in_place_is_neither_saved_nor_trained(tmp_path: Path) -> None:
    trainer = build_trainer(make_config(tmp_path), None)
    for step in range(3):
        trainer.step(trainer.part.batch(step))
    name, before = list(trainer.trained)[-1], trainer.tensors()["model"]
    before = {key: tensor.clone() for key, tensor in before.items()}

    class Cut:
        """Stands for a parameter; the second time that it is given values, those back from the average, a signal."""

        def __init__(self, parameter: torch.nn.Parameter) -> None:
            object.__setattr__(self, "parameter", parameter)
            object.__setattr__(self, "calls", 0)

        def __getattr__(self, key: str) -> Any:
            return getattr(self.parameter, key)

        def __setattr__(self, key: str, value: Any) -> None:
            object.__setattr__(self, "calls", self.calls + 1)
            if self.calls == 2:
                raise KeyboardInterrupt
            setattr(self.parameter, key, value)

    trainer.ema._parameters[name] = Cut(trainer.trained[name])  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), trainer.shown():
        assert not torch.equal(trainer.trained[name], before[name])
    after = trainer.tensors()["model"]
    assert [key for key, tensor in after.items() if not torch.equal(tensor, before[key])] == []
