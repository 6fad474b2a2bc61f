"""Folders that the benchmarks write to: made at the start, or refused there in one line."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.options import make_folders


@pytest.mark.parametrize("name", ["memory", "proof", "saving", "step", "training_run", "video"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = import_module(f"benchmarks.{name}")
    device = [] if name in ("proof", "saving") else ["--device", "cpu"]
    (tmp_path / "file").touch()
    assert benchmark.main(["--small", *device, "--out", str(tmp_path / "file/results")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--out " in error
    assert "cannot be written to: Not a directory" in error


@pytest.mark.parametrize(
    "name", ["cpu", "memory", "proof", "saving", "shortcuts", "soak", "step", "training_run", "video"]
)
def test_an_option_that_there_is_not_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module(f"benchmarks.{name}").main(["--such-an-option"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks.{name}: ")
    assert error.count("\n") == 1


def test_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    make_folders(Namespace(out=tmp_path / "a/b", scratch=tmp_path / "c"))
    make_folders(Namespace(out=tmp_path / "a/b", scratch=None))
    assert (tmp_path / "a/b").is_dir()
    assert (tmp_path / "c").is_dir()
