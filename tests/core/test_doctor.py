"""`contextanyone doctor`: what a card of a size can run, with and without a GPU and a ComfyUI."""

from __future__ import annotations

import types

import pytest
import torch

from contextanyone_core.cli import main
from contextanyone_core.cli.doctor import find_comfyui

GIB = 1 << 30


@pytest.fixture(autouse=True)
def no_gpu_and_no_comfyui(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))


def rows(text):
    """(model, size): mode, of the table."""
    lines = [line for line in text.splitlines() if "x" in line[20:34]]
    return {(line[:20].strip(), line[20:34].strip()): line[34:45].strip() for line in lines}


def test_without_a_gpu_the_miniature_is_named(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "cpu, no GPU found" in shown
    assert "miniature" in shown
    assert "--memory-gb" in shown
    assert torch.__version__.partition("+")[0] in shown
    assert rows(shown) == {}


def test_a_torch_without_cuda_is_not_a_machine_without_a_gpu(capsys, monkeypatch):
    """As pip installs it on Windows: whatever card is there, it sees none."""
    for cuda, told in ((None, True), ("12.8", False)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert main(["doctor"]) == 0
        assert ("this torch is built without CUDA and sees no card" in capsys.readouterr().out) is told
    monkeypatch.setattr(torch.version, "cuda", None)
    words = ["generate", "--later", "She waves.", "--out", "out.webp", "--device", "cuda"]
    assert main(words) == 2
    assert "'cuda' cannot be used here: this torch is built without CUDA" in capsys.readouterr().err
    assert main([*words[:-1], "xpu"]) == 2
    assert len(capsys.readouterr().err) < 250


def test_a_mac_is_told_of_its_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "no GPU found" not in shown
    assert "--device mps" in shown


def test_a_card_that_is_asked_about(capsys):
    found = {}
    for memory in ("4", "8", "12", "24"):
        assert main(["doctor", "--memory-gb", memory]) == 0
        found[memory] = rows(capsys.readouterr().out)
    full = "832x480x81"
    assert found["24"]["ContextAnyone 1.3B", full] == "high"
    assert found["8"]["ContextAnyone 1.3B", full] == "balanced"
    assert found["8"]["RefAlign 1.3B", full] == "balanced"
    assert found["8"]["RefAlign 14B", full] == "low"
    assert found["4"]["RefAlign 14B", full] == "none fits"
    order = ["none fits", "low", "balanced", "high"]
    for model in found["4"]:
        modes = [order.index(found[memory][model]) for memory in ("4", "8", "12", "24")]
        assert modes == sorted(modes), model


def test_this_machines_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = types.SimpleNamespace(name="A card", total_memory=8 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "cuda:0, A card" in shown
    assert "8.0 GiB, 7.0 free" in shown
    assert rows(shown)["RefAlign 1.3B", "832x480x81"] == "balanced"


def test_a_comfyui_is_found(tmp_path, monkeypatch, capsys):
    assert find_comfyui() is None
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert find_comfyui() == ("of unknown version", str(folder))
    (folder / "comfyui_version.py").write_text("# made by a tool\n__version__ = '0.33.0'\n", encoding="utf-8")
    assert main(["doctor"]) == 0
    assert f"0.33.0 in {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "-8", "x", "1e3", "nan", "99999"])
def test_a_wrong_memory_is_one_line(capsys, text):
    assert main(["doctor", f"--memory-gb={text}"]) == 2
    error = capsys.readouterr().err
    assert "gigabytes of a GPU are needed" in error
    assert error.count("\n") == 1
