"""A signal while the run samples or validates: it does not wait for the end of that, and nothing is lost or changed."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import linear_part
import pytest
import shared_part
import torch

from training.config import TrainConfig, parse_config
from training.loop import train
from training.state import Checkpoint, CheckpointStore


def make_config(out: Path, part: str, **run: Any) -> TrainConfig:
    run = {"name": "t", "steps": 6, "threads": 1, "workers": 0, "out": out, "trackers": []} | run
    return parse_config({"run": run, "optim": {"warmup_steps": 2}, "part": {"name": part}})


def latest(out: Path) -> Checkpoint:
    checkpoint = CheckpointStore(out / "checkpoints").load_latest()
    assert checkpoint is not None
    return checkpoint


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    for file, tensors in left.tensors.items():
        assert tensors.keys() == right.tensors[file].keys()
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor, right.tensors[file][name])] == []


def test_a_signal_cuts_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_config(tmp_path / "straight", "linear"))

    def told_to_end(self: linear_part.LinearPart, step: int, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    config = make_config(tmp_path / "cut", "linear", sample_every=2)
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(linear_part.LinearPart, "sample", told_to_end)
        assert train(config) == signal.SIGTERM
    assert time.monotonic() - began < 50
    assert latest(tmp_path / "cut").progress.step == 3  # the step after the samples, with the weights back in place
    assert train(config) is None
    assert_same(latest(tmp_path / "cut"), latest(tmp_path / "straight"))


def test_a_signal_ends_the_opening_of_data_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may encode for hours, and there is nothing to save: the process keeps its own way to end."""
    found = []

    def opens(self: Any) -> Any:
        found.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
        return iter([self.batch(0)])

    monkeypatch.setattr(shared_part.SharedPart, "open_data", opens, raising=False)
    monkeypatch.setattr(shared_part.SharedPart, "validation_batches", opens)
    own = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    train(make_config(tmp_path, "shared", steps=1, validate_every=2))
    assert found == [own, own]
    train(make_config(tmp_path, "shared", steps=1, validate_every=2))
    assert len(found) == 2, "a run that is at its end opens nothing"


def test_a_signal_cuts_the_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_config(tmp_path / "straight", "shared"))
    whole, calls = shared_part.SharedPart.validation_loss, []

    def told_to_end(self: shared_part.SharedPart, batch: Any, sigma: float, generator: torch.Generator) -> Any:
        calls.append(sigma)
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, batch, sigma, generator)

    config = make_config(tmp_path / "cut", "shared", validate_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(shared_part.SharedPart, "validation_loss", told_to_end)
        assert train(config) == signal.SIGTERM
    assert len(calls) == 5  # of the first batch, not of all three
    assert not (tmp_path / "cut/validation.jsonl").exists()
    assert latest(tmp_path / "cut").progress.step == 2
    assert train(config) is None
    assert_same(latest(tmp_path / "cut"), latest(tmp_path / "straight"))
    assert len((tmp_path / "cut/validation.jsonl").read_text().splitlines()) == 2
