"""The run at full size: its code at tiny sizes here, the sizes themselves without weights; the run itself nightly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import proof
from benchmarks.random_files import plan_components, random_tensor
from benchmarks.stack import full_sizes, small_sizes
from contextanyone_core.media.video_io import read_metadata

SMALL = ["--small", "--frames", "5", "--size", "32x32", "--steps", "1"]


def test_a_tiny_run_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert proof.main([*SMALL, "--scratch", str(scratch), "--out", str(tmp_path / "made")]) == 0
    assert proof.NOISE in capsys.readouterr().out
    assert list(scratch.iterdir()) == []  # the weights are gone
    found = json.loads((tmp_path / "made" / "proof.json").read_text())
    assert found["note"] == proof.NOISE
    assert found["video"] == [1, 3, 5, 32, 32]
    components = plan_components(small_sizes())
    assert found["parameters"] == {name: component.parameters for name, component in components.items()}
    assert 0 < found["peak_bytes_after_loading"] <= found["peak_bytes"] < found["limit_bytes"] == 20 * 10**9
    assert set(found["seconds"]) == {"write the weights", "load", "generate"}
    assert all(Path(file).is_file() for file in found["files"])
    assert read_metadata(tmp_path / "made" / "proof.mp4")["note"] == proof.NOISE


def test_the_components_have_the_published_sizes() -> None:
    counted = {name: component.parameters for name, component in plan_components(full_sizes()).items()}
    assert counted["text_encoder"] == 5_680_910_336
    assert counted["vae"] == 126_892_531
    assert counted["image_encoder"] == 630_766_080
    wan, clip, emphasize = 1_418_996_800, 145_308_928, 283_484_160
    assert counted["transformer"] == wan + clip + emphasize


def test_too_much_memory_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proof, "peak_memory", lambda _: 30 * 10**9)
    assert proof.main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "27.94 GiB, more than the 20 GB" in capsys.readouterr().err
    monkeypatch.setattr(proof, "_BESIDE", 1 << 50)
    assert proof.main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "fewer --text-layers" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--frames", "16"], ["--size", "255x255"], ["--text-layers", "25"], ["--device"]])
def test_a_mistake_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proof.main([*words, "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_random_weights_are_the_same_for_a_name_and_neither_zero_nor_large() -> None:
    for name, shape in (("blocks.0.ffn.0.weight", (64, 32)), ("blocks.0.ffn.0.bias", (64,)), ("a.gamma", (8, 1, 1))):
        value = random_tensor(name, shape, torch.bfloat16)
        assert value.dtype is torch.bfloat16
        assert torch.equal(value, random_tensor(name, shape, torch.bfloat16))
        assert 0 < float(value.abs().max()) < 2


@pytest.mark.nightly
def test_full_size_runs_within_twenty_gigabytes(tmp_path: Path) -> None:
    """A quarter of an hour, 10 GB of memory and as much disk: `.venv/bin/pytest -m nightly tests/benchmarks`."""
    assert proof.main(["--scratch", str(tmp_path), "--out", str(tmp_path / "made")]) == 0
    found = json.loads((tmp_path / "made" / "proof.json").read_text())
    assert found["video"] == [1, 3, 17, 256, 256]
    assert found["peak_bytes"] < 20 * 10**9
