"""The benchmark of the step that saves, at tiny size: content of its JSON; no timing is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import saving
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer


def test_the_command_measures_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--small", "--rounds", "2", "--threads", "1", "--out", str(tmp_path), "--scratch", str(tmp_path)]
    assert saving.main(words) == 0
    found = json.loads((tmp_path / "saving.json").read_text())
    network = ContextAnyoneTransformer(replace(ContextAnyoneConfig.tiny(), text_len=64), device="meta")
    whole = 4 * 4 * sum(parameter.numel() for parameter in network.parameters())  # with the average and two moments
    assert whole / 8 <= found["bytes"] < 1.5 * whole / 8
    assert len(found["rounds"]) == 2
    for row in found["rounds"]:
        assert row["plain"]["saving"] == 0.0, "nothing is saved beside a step without"
        assert row["plain"]["own"] > 0
        assert row["saving"]["own"] > 0
        assert row["whole"] >= row["held"] + row["saving"]["wall"]
    assert found["peak_gib"] >= found["before_gib"]
    assert (tmp_path / "saving.md").read_text() in capsys.readouterr().out
    assert not list(tmp_path.glob("contextanyone-saving-*")), "what it wrote to measure is gone"


def test_a_step_has_the_flops_of_a_picture_with_its_reference() -> None:
    products = saving._products_of_a_step(ContextAnyoneConfig.wan_1_3b(), small=False)
    tokens, matrices = 2 * 52 * 30, 1.7e9  # of the weights that a token meets
    assert products * 2 * 2048**3 == pytest.approx(3 * 2 * matrices * tokens, rel=0.3)
