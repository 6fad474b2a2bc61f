"""What follows a step, in the order that `training.loop._run` promises."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import linear_part
import pytest
import torch

from contextanyone_core.errors import InputError
from training.config import TrainConfig, parse_config
from training.loop import train
from training.parts import PARTS, PartEntry
from training.parts.base import Metrics, PartContext

SEEN: list[tuple[str, int, str]] = []  # event, steps logged, newest checkpoint
FILES: list[dict[str, int]] = []  # the checkpoints at each event


class Settings(linear_part.Settings):
    name: Literal["ordered"] = "ordered"  # type: ignore[assignment]
    out: Path
    validation: Literal["whole", "fails", "save", "signal"] = "whole"  # what happens in the first one after a step


class OrderedPart(linear_part.LinearPart):
    """Notes what is on disk whenever it is called."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        super().__init__(settings, context)
        self.opened = False

    def note(self, event: str) -> None:
        out = self.settings.out
        log, newest = out / "log.jsonl", out / "checkpoints" / "latest"
        step = log.read_text().count("\n") if log.is_file() else 0
        SEEN.append((event, step, newest.read_text().strip()[-1:] if newest.is_file() else "-"))
        FILES.append(checkpoints(out))

    def validation_batches(self) -> Iterator[Any]:
        if self.opened:
            self.note("validation")
            if self.settings.validation == "fails":
                raise InputError("The held-out data are gone.")
            if self.settings.validation == "save":
                (self.settings.out / "save").touch()
            if self.settings.validation == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
        self.opened = True
        yield self.batch(1000)

    def validation_loss(self, batch: Any, sigma: float, generator: torch.Generator) -> Metrics:
        return {"video": self.loss(batch, -1, generator)[0]}

    def sample(self, step: int, folder: Path) -> None:
        self.note("samples")


PARTS["ordered"] = PartEntry(__name__, "OrderedPart")


def make_config(out: Path, validation: str = "whole", **run: Any) -> TrainConfig:
    SEEN.clear()
    FILES.clear()
    run = {"name": "t", "steps": 4, "threads": 1, "workers": 0, "out": out, "trackers": []} | run
    part = {"name": "ordered", "out": out, "validation": validation}
    return parse_config({"run": run, "optim": {"warmup_steps": 0}, "part": part})


def checkpoints(out: Path) -> dict[str, int]:
    """Names, and the inode of the state: a checkpoint that is written twice has another."""
    return {path.parent.name: path.stat().st_ino for path in (out / "checkpoints").glob("*/state.json")}


def test_log_then_checkpoint_then_validation_then_samples(tmp_path: Path) -> None:
    train(make_config(tmp_path, save_every=2, validate_every=2, sample_every=2))
    assert SEEN == [("validation", 2, "2"), ("samples", 2, "2"), ("validation", 4, "4"), ("samples", 4, "4")]


def test_a_validation_that_fails_costs_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are gone"):
        train(make_config(tmp_path, "fails", save_every=2, validate_every=2, sample_every=2))
    assert SEEN == [("validation", 2, "2")]


def test_a_save_asked_for_in_a_validation_is_of_that_step(tmp_path: Path) -> None:
    train(make_config(tmp_path, "save", save_every=100, validate_every=3, sample_every=3))
    assert SEEN[:2] == [("validation", 3, "-"), ("samples", 3, "3")]


def test_a_signal_in_a_validation_ends_the_run_after_a_checkpoint_and_without_samples(tmp_path: Path) -> None:
    assert train(make_config(tmp_path, "signal", save_every=100, validate_every=3, sample_every=3)) == signal.SIGTERM
    assert SEEN == [("validation", 3, "-")]
    assert list(checkpoints(tmp_path)) == ["step-00000003"]
    assert not (tmp_path / "validation.jsonl").exists()


def test_a_checkpoint_that_is_due_is_written_once(tmp_path: Path) -> None:
    """Though it is the last step, and somebody asks for it too: what the validation finds is what stays."""
    train(make_config(tmp_path, "save", save_every=4, validate_every=4, sample_every=4))
    assert [event for event, _, _ in SEEN] == ["validation", "samples"]
    assert [checkpoints(tmp_path)] * 2 == FILES
    assert not (tmp_path / "save").exists()


def test_the_end_of_the_time_saves_and_shows_samples(tmp_path: Path) -> None:
    assert train(make_config(tmp_path, max_minutes=1e-9, save_every=100, sample_every=100)) is None
    assert SEEN == [("samples", 1, "1")]
