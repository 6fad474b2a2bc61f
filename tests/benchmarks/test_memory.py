"""The memory benchmark at tiny sizes: every mode runs from weight files; peaks are counted on a GPU only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.steps import Case
from contextanyone_core.runtime.memory import MODES


def test_every_mode_runs_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch = tmp_path / "not there yet" / "scratch"
    words = ["--device", "cpu", "--small", "--steps", "2", "--repeats", "1", "--scratch", str(scratch)]
    assert memory.main([*words, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert list(scratch.iterdir()) == []
    result = json.loads((tmp_path / "memory.json").read_text())
    assert [item["memory"] for item in result["modes"]] == list(reversed(MODES))
    for item in result["modes"]:
        assert set(item["by_arithmetic"]) == {"prompts", "references", "denoise", "decode"}
        assert len(item["stages"]) == 1
        assert (item["peak"], item["within_bound"], item["error"]) == (None, None, None)
    assert result["resident_bytes"] > 0
    assert (tmp_path / "memory.md").read_text() in shown
    assert (tmp_path / "memory.png").is_file()


def test_models_of_one_stream_share_their_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["contextanyone", "refalign", "bernini"]
    words = ["--device", "cpu", "--small", "--steps", "2", "--repeats", "1", "--modes", "balanced", "--models", *models]
    assert memory.main([*words, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    assert [(item["model"], item["memory"]) for item in result["modes"]] == [(model, "balanced") for model in models]
    assert all(len(item["stages"]) == 1 and item["error"] is None for item in result["modes"])
    ours, refalign, bernini = (item["by_arithmetic"]["denoise"] for item in result["modes"])
    assert refalign < bernini
    assert ours != refalign
    assert re.search(r"refalign +\| +balanced", capsys.readouterr().out)


def test_the_bound_is_for_low_at_full_size() -> None:
    full = memory.Namespace(small=False)
    assert memory._is_bound(full, Case(81, 832, 480, 1), "low")
    assert not memory._is_bound(full, Case(81, 832, 480, 4), "low")
    assert not memory._is_bound(full, Case(81, 832, 480, 1), "high")
    assert not memory._is_bound(memory.Namespace(small=True), Case(81, 832, 480, 1), "low")


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--modes", "lo", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "Did you mean low?" in captured.err
    assert captured.err.count("\n") == 1
