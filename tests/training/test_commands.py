"""`python training/train.py` as a user types it: exit codes, one line for a mistake, from any folder."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import linear_part  # noqa: F401  # lists the part
import pytest
import torch

from training.commands import output_folder, run_command
from training.settings import presets
from training.train import main

ROOT = Path(__file__).parents[2]
CONFIG = "run: {name: small, steps: 2, workers: 0}\npart: {name: linear}\n"


def test_script_lists_the_presets_and_exits_2(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "training/train.py")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "")
    assert result.stdout.startswith("Choose a configuration with --config FILE:\n")
    for preset in presets():
        assert str(preset) in result.stdout


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path / "c.yaml"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB."), MemoryError()]
)
def test_a_lack_of_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert run_command("train.py", command) == 1
    said = capsys.readouterr().err
    assert said.startswith("train.py: out of memory: ")
    assert said.count("\n") == 1
    assert "Tried to allocate 2 GiB." in said or isinstance(error, MemoryError)


def test_runs_into_runs_name(config: Path) -> None:
    assert main(["--config", str(config)]) == 0
    assert (config.parent / "runs/small/export/linear.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "run.stpes=3"], 2, "train.py: run.stpes is not a setting. Did you mean run.steps?\n"),
        (["--set", "run.out=c.yaml"], 2, "run.out c.yaml cannot be made"),
        (["--set", "init.from=none.safetensors"], 2, "init.from is none.safetensors, which is not a file"),
        (["--set", "part.nan_steps=[0,1,2,3,4,5,6,7,8,9]", "run.steps=20"], 1, "10 steps in a row"),
    ],
)
def test_mistakes_end_with_one_line(config: Path, capsys: Any, arguments: list[str], code: int, message: str) -> None:
    assert main(["--config", str(config), *arguments]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_unknown_option_is_one_line(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--conf", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "train.py: unrecognized arguments: --conf x\n"


@pytest.mark.parametrize("streams", [">&- 2>&-", "2>&1 | true", "2> /dev/full", "> /dev/full"])
def test_outputs_that_are_closed_full_or_not_read(tmp_path: Path, streams: str) -> None:
    script = ROOT / "training/write_world.py"
    line = f"'{sys.executable}' '{script}' --out world --count 1 --num-frames 1 --size 32x32 {streams}"
    command = ["bash", "-c", f"{line}\nexit ${{PIPESTATUS[0]}}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == (1 if streams == "> /dev/full" else 0), result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "world" / "manifest.jsonl").is_file()


def test_commands_that_share_an_output_folder_do_not_refuse_it_to_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as together:
        made = list(together.map(lambda _: output_folder("--work", tmp_path / "cells"), range(400)))
    assert set(made) == {tmp_path / "cells"}
    assert not list((tmp_path / "cells").iterdir())
