"""The step benchmark at tiny sizes: content of its JSON, interleaving, ratios, FLOPs; no timing is judged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import step
from benchmarks.measure import Timing, interleave, matmul
from benchmarks.networks import diffusers_vace, parameter_bytes, plain
from benchmarks.options import network_config
from benchmarks.ratios import STEP_RATIOS, Ratio, compare
from benchmarks.step_case import count_flops
from benchmarks.steps import VARIANTS, Case, Networks, make_step, random_inputs
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.shapes import VideoShape
from training.flops import forward_flops

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--small"]


def test_the_command_measures_every_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--cases", "5x2", "--repeats", "2", "--modes", "eager", "--sdpa", "flash"]
    assert step.main([*words, "--out", str(tmp_path / "made")]) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "made" / "step.json").read_text())
    assert {"schema", "title", "created", "versions", "machine", "options", "weights", "cases"} == set(result)
    (case,) = result["cases"]
    assert (case["frames"], case["references"], case["tokens"]) == (5, 2, 8)
    assert [(item["variant"], item["mode"]) for item in case["variants"]] == [(name, "eager") for name in VARIANTS]
    for item in case["variants"]:
        assert len(item["seconds"]) == 2
        assert item["error"] is None
        assert item["passes"] == (3 if item["variant"] in ("ours-dual", "phantom") else 2)
        assert item["memory"]["peak"] is None  # nothing counts it on a CPU
        assert (item["memory"]["cache"] > 0) == (item["variant"] in ("ours", "ours-pose", "ours-dual"))
        assert f"| {item['variant']} " in shown
    assert len(case["matmul"]["each"]) == len(case["cache"]["seconds"]) == 2
    assert {ratio.name for ratio in STEP_RATIOS} < {ratio["name"] for ratio in case["ratios"]}
    bounds = [ratio for ratio in case["ratios"] if (ratio["at_most"], ratio["at_least"]) != (None, None)]
    assert len(bounds) == 9
    assert all(ratio["met"] is None for ratio in bounds)  # tiny sizes are not judged
    with Image.open(tmp_path / "made" / "step.png") as plot:
        assert plot.width == 900
    assert (tmp_path / "made" / "step.md").read_text() in shown


def test_both_modes_of_one_network_take_turns(tmp_path: Path) -> None:
    words = [*SMALL, "--cases", "5x1", "--repeats", "1", "--variants", "wan", "ours"]
    assert step.main([*words, "--out", str(tmp_path)]) == 0
    (case,) = json.loads((tmp_path / "step.json").read_text())["cases"]
    found = [(item["variant"], item["mode"]) for item in case["variants"]]
    assert found == [("wan", "eager"), ("wan", "compiled"), ("ours", "eager"), ("ours", "compiled")]
    compared = [(ratio["name"], ratio["mode"]) for ratio in case["ratios"] if "plain" in ratio["name"]]
    assert compared == [("ours / plain Wan", "eager"), ("ours / plain Wan", "compiled")]
    assert set(case["cache"]["share_of_steps"]) == {"eager", "compiled"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "80x1"], "4k + 1"),
        (["--cases", "81x0"], "FRAMESxREFERENCES"),
        (["--variants", "phanton"], "Did you mean phantom?"),
        (["--size", "100x100"], "multiple of 16"),
        (["--repeat", "2"], "Did you mean --repeats?"),
        (["--device", "cuda:77"], "cannot be used here"),
        (["--device", "cpu", "--attention", "flash"], "works on cuda"),
        (["--sdpa", "cudn"], "Did you mean cudnn?"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--small", "--out", str(tmp_path / "none"), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_variants_take_turns_and_one_without_memory_is_left_out() -> None:
    ran: list[str] = []
    noted: list[str] = []

    def full() -> None:
        raise torch.OutOfMemoryError

    actions = {"a": lambda: ran.append("a"), "full": full, "b": lambda: ran.append("b")}
    timings = interleave(actions, 3, CPU, noted.append)
    assert ran == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "full": 0, "b": 3}
    assert noted == ["a", "full", "b"]
    assert timings["full"].error == "out of memory"
    assert timings["full"].median is None


def test_a_ratio_is_the_median_of_the_rounds_and_is_judged_by_its_bound() -> None:
    timings = {"x": Timing([1.0, 9.0, 2.0]), "y": Timing([1.0, 3.0, 1.0]), "gone": Timing(error="out of memory")}
    wanted = (Ratio("most", "x", "y", at_most=1.5), Ratio("least", "y", "x", at_least=0.4), Ratio("no", "x", "gone"))
    found = compare(wanted, timings, {"x": 30.0, "y": 20.0}, judge=True)
    assert [(ratio["name"], ratio["value"], ratio["met"]) for ratio in found] == [
        ("most", 2.0, False),
        ("least", 0.5, True),
    ]
    assert found[0]["each"] == [1.0, 3.0, 2.0]
    assert found[0]["by_flops"] == 1.5


def test_counted_work_is_the_arithmetic_of_training() -> None:
    config, case = network_config(small=True), Case(9, 48, 32, 2)
    counted = count_flops(VARIANTS, config, case)
    shape = VideoShape(9, 32, 48)
    video, still = shape.token_count(config), shape.picture.token_count(config)
    without = forward_flops(plain(config), video)
    assert counted["wan"] == counted["wan-diffusers"] == 2 * without
    assert counted["phantom"] == 3 * forward_flops(plain(config), video + 2 * still)
    clip = 2 * 257
    assert counted["ours-uncached"] == without + forward_flops(config, video, [still, still], clip)
    assert counted["ours"] < counted["ours-uncached"]
    channels = 2 * config.in_dim * math.prod(config.patch_size)
    assert counted["ours-pose"] - counted["ours"] == 2 * 2 * video * channels * config.dim
    assert counted["wan"] < counted["vace"]


@pytest.mark.parametrize(
    ("config", "case"),
    [
        (replace(ContextAnyoneConfig.wan_1_3b(), num_layers=1), Case(81, 832, 480, 1)),  # more blocks only add to both
        (replace(ContextAnyoneConfig.wan_14b(), num_layers=1), Case(5, 832, 480, 1)),
        (ContextAnyoneConfig.miniature(), Case(17, 128, 128, 1)),
        (ContextAnyoneConfig.miniature(), Case(1, 128, 128, 1)),
    ],
)
def test_a_pose_costs_at_most_a_hundredth(config: ContextAnyoneConfig, case: Case) -> None:
    counted = count_flops(("ours", "ours-pose"), config, case)
    assert 1 < counted["ours-pose"] / counted["ours"] <= 1.01


def test_the_cache_changes_nothing_but_time() -> None:
    config, case = network_config(small=True), Case(5, 32, 32, 2)
    networks = Networks(config, CPU, torch.float32)
    inputs = random_inputs(config, case, CPU, torch.float32)
    cached, uncached = (make_step(name, networks, inputs).run() for name in ("ours", "ours-uncached"))
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, make_step("ours-dual", networks, inputs).run())
    assert not torch.equal(cached, make_step("ours-pose", networks, inputs).run())
    for name in ("wan", "wan-diffusers", "phantom", "bernini", "vace"):
        velocity = make_step(name, networks, inputs).run()
        assert velocity.shape == cached.shape
        assert bool(velocity.isfinite().all())


def test_networks_are_made_in_their_dtype_and_no_weight_is_zero() -> None:
    config = network_config(small=True)
    model = diffusers_vace(config, CPU, torch.bfloat16)
    named = {name: item.dtype for name, item in model.named_parameters() if name.startswith("blocks.0.")}
    dtypes = {name.split(".")[-2]: dtype for name, dtype in named.items()}
    assert dtypes["norm2"] is torch.float32  # as diffusers loads it
    assert dtypes["to_q"] is torch.bfloat16
    assert model.rope.freqs_cos.dtype is torch.float32 or model.rope.freqs_cos.dtype is torch.float64
    networks = Networks(config, CPU, torch.bfloat16)
    ours = networks.of("ours")
    assert all(bool(parameter.any()) for parameter in ours.parameters())
    assert parameter_bytes(ours) == 2 * sum(parameter.numel() for parameter in ours.parameters())
    assert networks.of("phantom") is networks.of("wan")


def test_matrix_products_are_counted() -> None:
    run, flops = matmul(CPU, torch.float32, 8, 3)
    run()
    assert flops == 3 * 2 * 8**3
