"""VACE through diffusers' pipeline: a tiny real transformer, our encoders; order of references, cut, command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanVACETransformer3DModel
from PIL import Image

from contextanyone_core import cli
from contextanyone_core.encoders.reference import pad_picture
from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.generation.pipeline import GenerationSettings
from contextanyone_core.generation.vace import VacePipeline
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.prompts import TwoStagePrompt
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance

PROMPT = TwoStagePrompt("A woman with red hair.", "She waves.")
SETTINGS = GenerationSettings(num_frames=5, width=32, height=48, steps=2, seed=3)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public VACE folder's shape at tiny size."""
    made = tmp_path_factory.mktemp("vace")
    for part in ("vae", "text_encoder"):
        shutil.copy(tiny_folder / f"{part}.safetensors", made)
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        vace_layers=[0],
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(made / "transformer")
    return made


@pytest.fixture(scope="module")
def vace(folder: Path) -> VacePipeline:
    return VacePipeline.from_folder(folder)


def picture(seed: int) -> torch.Tensor:
    return (torch.rand(1, 3, 48, 32, generator=torch.Generator().manual_seed(seed)) * 255).round() / 127.5 - 1


def fed(vace: VacePipeline, run: Callable[[], object]) -> list[torch.Tensor]:
    """The context stream's latents of every pass of a run."""
    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["control_hidden_states"].clone())

    handle = vace._host.transformer.register_forward_pre_hook(note, with_kwargs=True)
    run()
    handle.remove()
    return seen


def test_references_stand_in_the_order_given_and_are_cut(vace: VacePipeline) -> None:
    steps: list[tuple[int, int]] = []
    pictures = [picture(0), picture(1)]
    results = []
    seen = fed(
        vace, lambda: results.append(vace.generate(pictures, PROMPT, SETTINGS, progress=lambda *x: steps.append(x)))
    )
    assert len(seen) == 4  # two passes a step
    for index, image in enumerate(pictures):
        expected = vace.vae.encode(pad_picture(image, SETTINGS.size)[:, :, None])
        assert torch.allclose(seen[0][:, :16, index : index + 1], expected, atol=1e-4)
    assert results[0].images.shape == (1, 3, 5, 48, 32)
    assert results[0].latents.shape == (1, 16, 2, 6, 4)
    assert steps == [(1, 2), (2, 2)]
    again = vace.generate(pictures, PROMPT, SETTINGS).latents
    assert torch.equal(again, results[0].latents)
    assert not torch.equal(vace.generate(pictures[::-1], PROMPT, SETTINGS).latents, again)


def test_without_a_reference_and_what_is_refused(vace: VacePipeline) -> None:
    one = replace(SETTINGS, steps=1)
    assert vace.config.shift == 16
    assert vace.generate([], PROMPT, one).latents.shape == (1, 16, 2, 6, 4)
    for guidance in (DualGuidance(), CfgGuidance(0.5)):
        with pytest.raises(InputError, match="VACE needs cfg"):
            vace.generate([], PROMPT, replace(one, guidance=guidance))


def test_another_model_is_named(folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    config = json.loads((broken / "transformer" / "config.json").read_text())
    (broken / "transformer" / "config.json").write_text(json.dumps(config | {"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(CheckpointError, match="holds a WanTransformer3DModel"):
        VacePipeline.from_folder(broken)
    (broken / "transformer" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"cannot be read .*VACE needs a folder"):
        VacePipeline.from_folder(broken)
    shutil.rmtree(broken / "transformer")
    with pytest.raises(CheckpointError, match=r"config.json is not there. VACE needs a folder"):
        VacePipeline.from_folder(broken)


def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save("good.png")
    words = ["generate", "--model", "vace", "--weights", str(folder), "--frames", "5", "--size", "32x32"]
    words += ["--reference", "good.png", "--first", "A woman.", "--steps", "1", "--out", "out.webp"]
    assert cli.main(words) == 0, capsys.readouterr().err
    metadata = read_metadata(Path("out.webp"))
    assert metadata["model"] == "vace"
    assert metadata["settings"]["shift"] == 16
    assert set(metadata["weights"]) == {
        "transformer/diffusion_pytorch_model.safetensors",
        "vae.safetensors",
        "text_encoder.safetensors",
    }
