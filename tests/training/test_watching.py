"""Monitoring of a run: speed in the log, trackers, and refused settings."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import linear_part  # noqa: F401  # registers the part
import numpy as np
import pytest
import shared_part  # noqa: F401  # registers the part
import tiny_part  # noqa: F401  # registers the part
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.media.video_io import write_clip
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.config import parse_config
from training.flops import backward_flops, forward_flops
from training.loop import train
from training.parts.transformer import Settings
from training.parts.transformer_base import TransformerTraining
from training.speed import Speedometer, matmul_rate
from training.trackers import read
from training.watch import Watch

TINY = ContextAnyoneConfig.tiny()
BATCH = {
    "latents": torch.zeros(2, 16, 3, 4, 6),
    "reference_latents": torch.zeros(2, 16, 1, 4, 6),
    "image_embeds": torch.zeros(2, 5, 24),
}


def part(**settings: object) -> TransformerTraining:
    return TransformerTraining(Settings(**settings), ContextAnyoneTransformer(TINY))


def run(out: Path, steps: int, part: str = "linear", **settings: object) -> None:
    given = {"name": "t", "steps": steps, "threads": 1, "workers": 0, "out": out, "sample_every": 2} | settings
    train(parse_config({"run": given, "part": {"name": part}}))


def test_work_is_that_of_the_batch():
    whole, without = (part().work(BATCH, with_reference=used) for used in (True, False))
    assert whole.tokens == 2 * (18 + 6)
    assert whole.flops == 2 * (forward_flops(TINY, 18, [6], 5) + backward_flops(TINY, 18, [6], 5))
    assert without.tokens == 2 * 18
    assert without.flops == 2 * (forward_flops(TINY, 18) + backward_flops(TINY, 18))
    assert part(train={"only": ["*emphasize*"]}).work(BATCH, with_reference=True).flops is None


@pytest.mark.parametrize("reading", ["phantom", "bernini"])
def test_work_of_one_stream_has_the_references_in_every_step(reading):
    """Theirs, or zeros in their place."""
    backbone = replace(TINY, emphasize=False, image_dim=None)
    joined = TransformerTraining(Settings(reading=reading), ContextAnyoneTransformer(backbone))
    for used in (True, False):
        work = joined.work(BATCH, with_reference=used)
        assert work == (2 * 24, 2 * (forward_flops(backbone, 24) + backward_flops(backbone, 24)))


def test_speed_of_a_step():
    speed = Speedometer(part(), torch.device("cpu"), bf16=False)
    found = speed.describe([BATCH], {"reference": 0.5}, 2, 4.0)
    assert found["samples_per_second"] == 0.5
    assert found["tokens_per_second"] == 12.0
    work = part().work(BATCH, with_reference=True)
    assert found["tflops"] == pytest.approx(work.flops / 4e12, rel=1e-3)
    assert 0 < found["mfu"] < 1
    assert found["peak_memory_gib"] > 0.05
    frozen = Speedometer(part(train={"only": ["*emphasize*"]}), torch.device("cpu"), bf16=False)
    assert "tflops" not in frozen.describe([BATCH], {}, 2, 4.0)
    assert matmul_rate(torch.device("cpu"), bf16=False) > 1e8


def test_only_batches_with_references_count_as_such():
    speed = Speedometer(part(), torch.device("cpu"), bf16=False)
    record = {"reference": 0.5, "with_reference": [True, False, False]}
    found = speed.describe([BATCH] * 3, record, 6, 1.0)
    assert found["tokens_per_second"] == 2 * (24 + 18 + 18)


def test_a_step_says_which_of_its_batches_had_references(tmp_path):
    given = {"name": "t", "steps": 2, "threads": 1, "workers": 0, "out": tmp_path, "trackers": []}
    train(parse_config({"run": given, "optim": {"accumulate": 3}, "part": {"name": "tiny"}}))
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["with_reference"] == [True, False, True]
    assert second["with_reference"] == [False, True, False]


def test_tensorboard_has_every_step_once_and_the_samples(tmp_path):
    run(tmp_path, 4)
    run(tmp_path, 6)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["peak_memory_gib"] > 0 for line in log)
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert list(losses) == list(range(6))
    assert losses[5] == pytest.approx(log[-1]["loss"], rel=1e-6)
    assert {event.step for event in found.Images("samples/0")} == {1, 3, 5}  # the step just done


def test_tensorboard_keeps_the_validation_of_the_step_that_a_run_goes_on_from(tmp_path):
    for steps in (2, 4):
        run(tmp_path, steps, "shared", validate_every=2)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("validation/video")] == [1, 3]  # the step just done


def test_no_tracker_where_none_is_asked_for(tmp_path):
    run(tmp_path, 2, trackers=[])
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (2, 4):
        run(tmp_path, steps, trackers=["wandb"])
    identity = (tmp_path / "wandb.id").read_text().strip()
    kept = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(kept) == 2
    assert all(name.endswith(f"-{identity}") for name in kept)


def test_wandb_without_a_login_says_what_to_do(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    wandb.teardown()  # forgets the mode of runs before
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    with pytest.raises(InputError, match=r"run.trackers: wandb does not start: .*WANDB_MODE=offline"):
        run(tmp_path, 2, trackers=["wandb"])


def test_a_tracker_that_is_not_installed_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="pip install wandb, or leave it out"):
        run(tmp_path, 2, trackers=["wandb"])


def test_pictures_of_every_kind_of_sample(tmp_path):
    frames = np.stack([np.full((16, 32, 3), 20 * index, np.uint8) for index in range(9)])
    write_clip(tmp_path / "clip.mp4", frames, {})
    assert read(tmp_path / "clip.mp4").shape == (16, 5 * 32, 3)
    Image.fromarray(frames[3]).save(tmp_path / "still.png")
    assert np.array_equal(read(tmp_path / "still.png"), frames[3])
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:])
    assert read(tmp_path / "clip.gif").shape == (16, 5 * 32, 3)


def test_ten_steps_in_a_row_without_a_gradient_are_reported_once(tmp_path, caplog):
    config = parse_config({"run": {"name": "t", "steps": 40, "trackers": []}, "part": {"name": "linear"}})
    line = {"loss": 1.0, "lr": 0.0, "samples_per_second": 1.0}
    with Watch(config, tmp_path, 0, active=True) as watch:
        for step in range(35):
            watch.step(line | {"step": step, "grad_norm": float(step == 9)})
    assert [record.message[:35] for record in caplog.records] == ["10 steps in a row up to step 19 had"]
