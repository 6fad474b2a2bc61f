"""Folders that the benchmarks write to: made at the start, or refused there in one line."""

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.options import made_folder


@pytest.mark.parametrize("name", ["memory", "proof", "saving", "step", "training_run", "video"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = import_module(f"benchmarks.{name}")
    monkeypatch.setattr(benchmark, "prove" if name == "proof" else "measure", lambda _: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert benchmark.main(["--small", "--out", str(tmp_path / "file/results")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--out: the folder" in error
    assert "cannot be written to: Not a directory" in error


@pytest.mark.parametrize(
    "name", ["cpu", "memory", "proof", "saving", "shortcuts", "soak", "step", "training_run", "video"]
)
def test_an_option_that_there_is_not_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module(f"benchmarks.{name}").main(["--such-an-option"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks.{name}: ")
    assert error.count("\n") == 1


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    assert made_folder(str(tmp_path / "a/b")).is_dir()
    assert made_folder(str(tmp_path / "a/b")) == tmp_path / "a/b"
