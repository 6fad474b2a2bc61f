"""The video benchmark at tiny sizes: all four models through their own pipelines; no timing is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import video
from benchmarks.stack import UMT5_LAYERS, Stacks, full_sizes, small_sizes
from contextanyone_core.encoders.image import build_image_model
from contextanyone_core.encoders.loading import on_meta
from contextanyone_core.encoders.text import build_text_model
from contextanyone_core.encoders.vae import build_vae
from contextanyone_core.model_specs import MODELS


def test_all_four_models_run_and_stand_in_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--small", "--steps", "3", "--repeats", "2", "--out", str(tmp_path)]
    assert video.main(words) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "video.json").read_text())
    assert {"schema", "title", "created", "versions", "machine", "options", "weights", "cases"} == set(result)
    (case,) = result["cases"]
    assert (case["frames"], case["width"], case["height"], case["references"]) == (5, 32, 32, 1)
    assert [item["model"] for item in case["models"]] == list(MODELS)
    for item in case["models"]:
        assert len(item["seconds"]) == 2
        assert item["error"] is None
        assert set(item["stages"]) == {"encode", "step", "decode"}
        assert all(size > 0 for size in item["memory"]["weights"].values())
        assert ("image_encoder" in item["memory"]["weights"]) == (item["model"] == "contextanyone")
        assert item["memory"]["peak"] is None
    names = {"ours / plain Wan", "ours / Phantom", "ours / VACE", "reference cache / video"}
    assert {ratio["name"] for ratio in case["ratios"]} == names
    assert all(ratio["met"] is None for ratio in case["ratios"])
    assert (tmp_path / "video.md").read_text() in shown
    with Image.open(tmp_path / "video.png") as plot:
        assert plot.width == 900


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--steps", "1"], "from 2 to 1000"), (["--models", "vaze"], "Did you mean vace?"), (["--compiled"], "--compile")],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert video.main(["--small", "--out", str(tmp_path), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_stages_from_the_ends_of_steps() -> None:
    found = video.stages([0.0, 5.0, 7.0, 9.0, 12.0])
    assert found == {"encode": 3.0, "step": 2.0, "decode": 3.0}


def test_parts_are_shared_between_pipelines() -> None:
    stacks = Stacks(small_sizes(), torch.device("cpu"), torch.float32)
    wan, phantom, ours = (stacks.pipeline(name) for name in ("wan", "phantom", "contextanyone"))
    assert stacks.network("wan") is stacks.network("phantom")
    assert stacks.network("contextanyone") is not stacks.network("wan")
    assert wan.text_encoder is phantom.text_encoder is ours.text_encoder


def test_full_sizes_are_the_published_ones() -> None:
    sizes = full_sizes()
    built = {
        "vae": on_meta(lambda: build_vae(sizes.vae)),
        "text": on_meta(lambda: build_text_model(sizes.text)),
        "image": on_meta(lambda: build_image_model(sizes.image)),
    }
    counted = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in built.items()}
    assert sizes.text["num_layers"] == UMT5_LAYERS
    assert counted == {"vae": 126_892_531, "text": 5_680_910_336, "image": 630_766_080}
