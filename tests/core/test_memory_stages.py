"""The bytes of each stage of a generation: coders and encoders against every allocation, at full size without data."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from contextanyone_core.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, ContextAnyoneConfig
from contextanyone_core.encoders.text import build_text_model
from contextanyone_core.encoders.vae import VideoVAE, build_vae, mini_vae_config
from contextanyone_core.generation.load import model_sizes
from contextanyone_core.generation.pipeline import ContextAnyonePipeline
from contextanyone_core.model_specs import MODELS
from contextanyone_core.runtime.fits import _sizes, fits, stages_of
from contextanyone_core.runtime.memory import (
    _TEXT_WORK,
    MODES,
    ModelSizes,
    decode_bytes,
    encode_bytes,
    fitting_mode,
    stage_bytes,
)
from contextanyone_core.runtime.options import FULL_SIZE
from contextanyone_core.shapes import VideoShape

_spec = importlib.util.spec_from_file_location("tracker", Path(__file__).with_name("test_memory.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
PeakOfStorages = _module.PeakOfStorages

GIB = 1 << 30
VAE = mini_vae_config() | {
    "base_dim": 96,
    "latents_mean": list(WAN_LATENTS_MEAN),
    "latents_std": list(WAN_LATENTS_STD),
}
UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
# Of the 1.3B and the 14B model with everything of ours, umT5-XXL, CLIP ViT-H/14 and Wan's VAE.
REST = {"text": 5_680_910_336, "text_table": 1_050_148_864, "text_block": 192_948_224, "image": 630_766_080}
SIZES = {
    "1.3B": ModelSizes(transformer=1_847_789_888, block=60_613_376, vae=126_892_531, **REST),
    "14B": ModelSizes(transformer=20_590_411_584, block=508_737_024, vae=126_892_531, **REST),
}
CONFIGS = {"1.3B": ContextAnyoneConfig.wan_1_3b(), "14B": ContextAnyoneConfig.wan_14b()}


def measured(module: Any, work: Any) -> int:
    """Peak of all storages but the weights."""
    tracker = PeakOfStorages({StorageWeakRef(p.untyped_storage()).cdata for p in module.parameters()})
    with tracker, torch.no_grad():
        work()
    return tracker.peak


@pytest.fixture
def half():
    """New modules and tensors are bf16."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("video", "tiled"),
    [(VideoShape(13, 480, 832), False), (VideoShape(9, 256, 256), False), (VideoShape(5, 272, 320), True)],
)
def test_decoding_is_within_20_percent_of_every_allocation(half, video, tiled):
    with FakeTensorMode():
        vae = build_vae(VAE).eval()
        latents = torch.randn(1, 16, 1 + (video.num_frames - 1) // 4, video.height // 8, video.width // 8)
        peak = measured(vae, lambda: VideoVAE(vae, tiled=tiled).decode(latents))
    assert decode_bytes(video, 2, tiled=tiled) == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize("video", [VideoShape(1, 480, 832), VideoShape(9, 480, 832), VideoShape(33, 256, 256)])
def test_encoding_a_reference_and_a_pose(half, video):
    with FakeTensorMode():
        vae = build_vae(VAE).eval()
        assert sum(p.numel() for p in vae.parameters()) == SIZES["14B"].vae
        images = torch.randn(1, 3, video.num_frames, video.height, video.width)
        peak = measured(vae, lambda: VideoVAE(vae).encode(images))
    assert encode_bytes(video, 2) == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize("mode", MODES)
def test_a_pose_is_encoded_where_references_are(mode):
    posed = FULL_SIZE._replace(pose=True)
    without, found = (stage_bytes(mode, SIZES["1.3B"], CONFIGS["1.3B"], video) for video in (FULL_SIZE, posed))
    pose, reference = encode_bytes(posed.shape, 2), encode_bytes(posed.shape.picture, 2)
    assert pose > 3 * reference
    assert {stage for stage in found if found[stage] != without[stage]} == {"references"}
    assert found["references"] >= pose


def test_the_text_encoder(half):
    with FakeTensorMode():
        model = build_text_model(UMT5_XXL).eval()
        ids = torch.zeros(3, 512, dtype=torch.long)
        peak = measured(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))
        assert sum(p.numel() for p in model.parameters()) == REST["text"]
        assert sum(p.numel() for p in model.encoder.block[0].parameters()) == REST["text_block"]
        assert model.shared.weight.numel() == REST["text_table"]
    assert pytest.approx(peak, rel=0.2) == _TEXT_WORK


def test_the_modes_at_832_x_480_and_81_frames():
    """What docs/SPEED.md states, in GiB."""
    table = {}
    for name, sizes in SIZES.items():
        for mode in MODES:
            stages = stage_bytes(mode, sizes, CONFIGS[name], FULL_SIZE)
            table[name, mode] = round(max(stages.values()) / GIB, 1)
    text = (Path(__file__).parents[2] / "docs" / "SPEED.md").read_text(encoding="utf-8")
    for (name, mode), gib in table.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | {mode} |"))
        assert f"| **{gib}** |" in row


@pytest.mark.parametrize("model", ["refalign", "bernini", "phantom"])
def test_models_of_one_stream_at_832_x_480_and_81_frames(model):
    """What docs/SPEED.md states, in GiB; nothing of the references is kept on the CPU or the GPU."""
    text = (Path(__file__).parents[2] / "docs" / "SPEED.md").read_text(encoding="utf-8")
    title = MODELS[model].title
    for width in ("1.3B", "14B") if model != "bernini" else ("1.3B",):
        stages = stages_of(MODELS[model], width, FULL_SIZE)
        for mode in MODES:
            row = next(line for line in text.splitlines() if line.startswith(f"| {title} {width} | {mode} |"))
            assert f"| **{max(stages[mode].values()) / GIB:.1f}** |" in row
        with_one, without = (stages_of(MODELS[model], width, FULL_SIZE._replace(references=n)) for n in (1, 0))
        more = {mode: with_one[mode]["denoise"] - without[mode]["denoise"] for mode in MODES}
        assert len(set(more.values())) == 1
        assert 0 < more["low"] < 0.3 * GIB


def test_a_reference_of_its_own_size_is_planned_as_the_largest():
    plan = {name: stages_of(MODELS[name], "1.3B", FULL_SIZE)["balanced"] for name in ("bernini", "refalign")}
    vae = 2 * SIZES["1.3B"].vae
    assert plan["bernini"]["references"] == vae + encode_bytes(VideoShape(1, 848, 848), 2)
    assert plan["bernini"]["denoise"] > plan["refalign"]["denoise"]


def test_the_fastest_that_fits():
    stages = {mode: stage_bytes(mode, SIZES["1.3B"], CONFIGS["1.3B"], FULL_SIZE) for mode in MODES}
    chosen = [fitting_mode(gib * GIB, stages) for gib in (80, 24, 16, 12, 8, 6, 4, 1)]
    assert chosen == ["high", "high", "balanced", "balanced", "balanced", "low", "low", None]


def test_the_doctors_sizes_are_those_of_the_networks():
    rows = fits(24 * GIB)
    ours = _sizes(True, "1.3B")[1]
    assert ours == SIZES["1.3B"]
    assert _sizes(False, "1.3B")[1].transformer == 1_418_996_800
    assert len(rows) == len({(row.spec.name, row.width, row.shape) for row in rows})
    by_name = {(row.spec.name, row.width): row for row in rows if row.shape == FULL_SIZE.shape}
    assert by_name["contextanyone", "1.3B"].mode == "high"
    assert by_name["refalign", "14B"].mode == "low"
    assert {row.mode for row in fits(GIB)} == {None}
    for row in rows:
        assert (row.host == 0) == (row.mode == "high")
        assert row.mode is None or row.peak <= 0.9 * 24 * GIB


def test_sizes_of_a_folder_are_those_of_its_parts(tiny_folder):
    config, sizes = model_sizes(tiny_folder, MODELS["contextanyone"])
    pipeline = ContextAnyonePipeline.from_folder(tiny_folder)

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    text = pipeline.text_encoder.model
    assert config == pipeline.config
    assert sizes == ModelSizes(
        transformer=count(pipeline.transformer),
        block=count(pipeline.transformer.blocks[0]),
        text=count(text),
        text_table=text.shared.weight.numel(),
        text_block=count(text.encoder.block[0]),
        image=count(pipeline.dual_encoder.semantic_encoder.model),
        vae=count(pipeline.vae.vae),
        vae_width=4,
    )


def test_sizes_of_public_files_are_read_off_their_headers(tiny_folder, wan_file, tmp_path):
    for part in ("vae", "text_encoder"):
        shutil.copy(tiny_folder / f"{part}.safetensors", tmp_path)
    shutil.copy(wan_file, tmp_path)
    config, sizes = model_sizes(tmp_path, MODELS["wan"])
    assert (config.num_layers, config.image_dim, sizes.image) == (2, None, 0)
    stored = load_file(wan_file)
    assert sizes.transformer == sum(tensor.numel() for tensor in stored.values())
    assert sizes.block == sum(tensor.numel() for name, tensor in stored.items() if name.startswith("blocks.0."))
