"""Every script of the trainer: thin, with --help, and one clear line and exit code 2 for bad input."""

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from training.randomness import seed_for

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "training").glob("*.py")
    if "run_command(" in path.read_text() and "__main__" in path.read_text()
)


def main_of(name: str) -> Callable[[list[str]], int]:
    return cast(Callable[[list[str]], int], importlib.import_module(f"training.{name}").main)


def test_all_of_them_are_here() -> None:
    expected = {
        "cache",
        "evaluate",
        "export",
        "make_manifest",
        "plan",
        "report",
        "train",
        "validate_data",
        "write_world",
    }
    assert expected <= set(SCRIPTS)
    for name in SCRIPTS:
        assert len((ROOT / "training" / f"{name}.py").read_text().splitlines()) < 80


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_of(name)(["--help"])
    assert caught.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_finds_the_trainer_by_its_own_path(name: str) -> None:
    """training/ is not installed, and a script's own folder would hide the packages. test_commands.py starts one so."""
    before, line, after = (
        (ROOT / "training" / f"{name}.py")
        .read_text()
        .partition("    sys.path[0] = str(Path(__file__).resolve().parents[1])\n")
    )
    assert line
    assert "from training" not in before
    assert "from training" in after


def test_torchrun_starts_a_script_in_any_folder(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", str(ROOT / "training/cache.py")]
    done = subprocess.run(
        [*command, "--config", "none.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "cache.py: The configuration none.yaml does not exist" in done.stderr


def test_a_spawned_process_finds_the_trainer() -> None:
    """As a DataLoader's workers do with that start method: they get the parent's sys.path."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(seed_for, (1, 2, "x")) == seed_for(1, 2, "x")


QUICK = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    sys.stderr.write(" ".join(sorted({"torch", "diffusers", "transformers", "cv2"} & sys.modules.keys())))
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_loads_nothing_heavy(name: str) -> None:
    command = [sys.executable, "-c", QUICK, str(ROOT / "training" / f"{name}.py")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: " in result.stdout
    assert result.stderr == ""


BAD = {
    "cache": (["--config", "none.yaml"], "The configuration none.yaml does not exist"),
    "evaluate": (["--config", "none.yaml", "--out", "out"], "The configuration none.yaml does not exist"),
    "export": (["none", "--out", "out"], "none is not the folder of a run"),
    "make_manifest": (["none", "--out", "m.jsonl"], "none is not a folder"),
    "plan": (["--config", "binary"], "The configuration binary cannot be read"),
    "report": (["none"], "cannot be read"),
    "train": (["--config", "."], "The configuration . cannot be read"),
    "validate_data": (["none.jsonl"], "none.jsonl"),
    "write_world": (["--out", "world", "--size", "10x10"], "size"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    arguments, message = BAD[name]
    assert main_of(name)(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"{name}.py: ")
    assert message in errors
    assert errors.count("\n") == 1


CONFIGS = ROOT / "training/configs"
OUTPUTS = {
    "report": (["RUN", "--out", "none/page.html"], "--out is none/page.html, but there is no folder none"),
    "plan": (["--config", str(CONFIGS / "debug.yaml"), "--plot", "RUN"], "--plot is RUN, which is a folder"),
    "make_manifest": (["RUN", "--out", "none/m.jsonl"], "--out is none/m.jsonl, but there is no folder none"),
    "validate_data": (["FILE", "--dropped", "none/dropped"], "--dropped is none/dropped, but there is no folder none"),
    "evaluate": (
        ["--config", str(CONFIGS / "miniature/evaluate.yaml"), "--out", "FILE"],
        "--out FILE cannot be written",
    ),
    "write_world": (["--out", "FILE"], "FILE is not an empty folder"),
}


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_a_place_that_cannot_be_written_to_is_said_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "FILE").touch()
    arguments, message = OUTPUTS[name]
    assert main_of(name)(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_option_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_of(name)(["--nothing"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [("train", "debug", "part.num_frames"), ("evaluate", "miniature/evaluate", "num_frames")],
)
def test_a_number_of_frames_that_wan_cannot_have(
    name: str, config: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)] if name == "evaluate" else []
    assert main_of(name)(["--config", str(CONFIGS / f"{config}.yaml"), *out, "--set", f"{key}=6"]) == 2
    assert f"{key} is 6: Wan needs 4k + 1 frames, such as 5 or 9" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cache", "plan", "train"])
def test_an_unknown_setting_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "training/configs/miniature/manifest.yaml")
    assert main_of(name)(["--config", config, "--set", "part.data.buckets.max_token=3"]) == 2
    assert "Did you mean part.data.buckets.max_tokens?" in capsys.readouterr().err
