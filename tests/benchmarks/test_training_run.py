"""The training benchmark at tiny size on a CPU: content of its JSON; no timing is judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import training_run


@pytest.mark.nightly
def test_the_command_measures_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "_MEASURED", 2)
    monkeypatch.setattr("training.planning.plan.RECOMPUTE", ("selective",))  # the others take twice as long
    compiling = "training.parts.transformer_base.compile_for_buckets"  # half a minute
    monkeypatch.setattr(compiling, lambda network, forward: None)
    words = ["--device", "cpu", "--small", "--steps", "12", "--out", str(tmp_path), "--scratch", str(tmp_path)]
    assert training_run.main(words) == 0
    found = json.loads((tmp_path / "training_run.json").read_text())
    for name in ("eager", "compiled"):
        assert found[name].keys() == {"seconds", "first_seconds", "mfu", "peak_gib"}
        assert all(value > 0 for value in found[name].values())
    assert found["save"].keys() == {"held_seconds", "step_ratio", "whole_seconds"}
    assert all(math.isfinite(loss) for loss in found["losses"])
    assert found["judged"] == {"time": None, "memory": None, "loss": None}, "tiny sizes are not judged"
    assert found["plan"]["peak_gib"] > 0
    assert (tmp_path / "training_run.md").read_text() in capsys.readouterr().out
    assert not list(tmp_path.glob("contextanyone-training-*")), "what it wrote to measure is gone"


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training_run.main(["--device", "cuda:7", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
