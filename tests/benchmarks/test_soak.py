"""The soak: what it refuses, and (nightly) one fault of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import soak
from training.state import CheckpointStore, Progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal runs of three steps, the second with a step that was repeated."""
    for name, steps in (("straight", (0, 1, 2)), ("hit", (0, 1, 1, 2))):
        CheckpointStore(tmp_path / name / "checkpoints").save(
            Progress(step=3), {"model": {"weight": torch.ones(2)}, "optimizer": {"weight/step": torch.ones(1)}}
        )
        lines = [json.dumps({"step": step, "loss": 1 / (1 + step)}) for step in steps]
        (tmp_path / name / "log.jsonl").write_text("\n".join(lines) + "\n")
        (tmp_path / name / "export").mkdir()
        (tmp_path / name / "export" / "transformer.safetensors").write_bytes(b"weights")
    return tmp_path / "straight", tmp_path / "hit"


def test_equal_runs_pass_and_repeated_steps_are_counted(runs: tuple[Path, Path]) -> None:
    assert soak._compare(*runs, 3) == 1


def test_every_difference_is_refused(runs: tuple[Path, Path]) -> None:
    straight, hit = runs
    (hit / "export" / "transformer.safetensors").write_bytes(b"others")
    with pytest.raises(soak.SoakError, match=r"transformer\.safetensors differs"):
        soak._compare(straight, hit, 3)
    with pytest.raises(soak.SoakError, match="did not reach its last step"):
        soak._compare(straight, hit, 4)
    (hit / "export" / "transformer.safetensors").write_bytes(b"weights")
    log = hit / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole.replace("0.5", "0.4"))
    with pytest.raises(soak.SoakError, match="losses of the steps"):
        soak._compare(straight, hit, 3)
    first, second, _, third = whole.splitlines(keepends=True)
    log.write_text(first + third + second + third)
    with pytest.raises(soak.SoakError, match="left out"):
        soak._compare(straight, hit, 3)
    log.write_text(whole)
    other = {"model": {"weight": torch.tensor([1.0, 2.0])}, "optimizer": {"weight/step": torch.ones(1)}}
    CheckpointStore(hit / "checkpoints").save(Progress(step=3), other)
    with pytest.raises(soak.SoakError, match="model, weight: the run with faults differs"):
        soak._compare(straight, hit, 3)


def test_a_damaged_file_has_one_other_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    soak._damage(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    assert len(content) == 100
    assert sum(byte != 0 for byte in content[50:]) == 1
    assert content[:50] == bytes(50)


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="counts on Linux's limits and signals")
def test_a_fault_of_each_kind(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "soak"), "--faults", str(len(soak.FAULTS))]
    result = subprocess.run([sys.executable, "-m", "benchmarks.soak", *words], cwd=ROOT, check=False)
    assert result.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "soak" / "soak.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == soak.FAULTS.keys()
    assert all(row["named"] for row in rows)
