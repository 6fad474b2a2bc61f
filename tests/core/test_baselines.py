"""Phantom and plain Wan: Phantom's forward equals diffusers', its sampling an independent version of its loop."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from PIL import Image
from safetensors.torch import save_file

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError, ShapeError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.model_specs import MODELS
from contextanyone_core.prompts import DEFAULT_NEGATIVE, WAN_NEGATIVE, TwoStagePrompt
from contextanyone_core.sampling.flow import sigma_schedule
from contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance
from contextanyone_core.sampling.reference_modes import TemporalConcatenation
from contextanyone_core.weights.locate import find_component, misnamed_transformer, need_component
from contextanyone_core.weights.name_tables import rename, transformer_table
from contextanyone_core.weights.recognition import recognise

PROMPT = TwoStagePrompt("A woman with red hair.", "The same person is waving.")
SETTINGS = GenerationSettings(num_frames=5, width=32, height=48, steps=4, seed=3)


def random_transformer(config: ContextAnyoneConfig, seed: int = 4) -> ContextAnyoneTransformer:
    torch.manual_seed(seed)
    model = ContextAnyoneTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def theirs(model: ContextAnyoneTransformer) -> WanTransformer3DModel:
    """diffusers' transformer with the same weights."""
    config = model.config
    other = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
    )
    other.load_state_dict(rename(model.state_dict(), transformer_table(config.num_layers)))
    return other.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def phantom(wan_folder: Path) -> ContextAnyonePipeline:
    return ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["phantom"])


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(1, 3, 40, 24, generator=generator) * 2 - 1,
        torch.rand(1, 3, 30, 50, generator=generator) * 2 - 1,
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_phantoms_forward_is_diffusers_on_the_concatenated_latents(phantom: ContextAnyonePipeline, count: int) -> None:
    config = phantom.config
    latents, text = torch.randn(2, 16, 3, 6, 4), torch.randn(2, config.text_len, config.text_dim)
    references = [torch.randn(2, 16, 1, 6, 4) for _ in range(count)]
    timesteps = torch.tensor([999.0, 12.5])
    reading = TemporalConcatenation(phantom.transformer, ReferenceInputs(references, text, []))
    for with_reference in (True, False):
        joined = torch.cat([latents, *(item if with_reference else 0 * item for item in references)], dim=2)
        expected = theirs(phantom.transformer)(joined, timesteps, text, return_dict=False)[0][:, :, :3]
        given = reading.velocity(latents, timesteps, text, with_reference=with_reference)
        assert torch.allclose(given, expected, atol=1e-4)
        assert expected.std() > 0.1


def test_a_run_of_phantom_equals_its_loop(phantom: ContextAnyonePipeline) -> None:
    """Noise for video and references; the tail overwritten by clean latents at every step; three passes; cut."""
    result = phantom.generate(pictures(), PROMPT, SETTINGS, negative="night")
    model, size, text_encoder = theirs(phantom.transformer), SETTINGS.size, phantom.text_encoder
    references = torch.cat([phantom.dual_encoder.encode(item, size).latents for item in pictures()], dim=2)
    prompt, negative = (text_encoder.encode([text]) for text in (PROMPT.video_text, "night"))
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(4)
    sigmas = sigma_schedule(4, phantom.config.shift)
    scheduler.sigmas, scheduler.timesteps = sigmas.clamp(max=1 - 1e-6), 1000 * sigmas[:-1]
    x = torch.cat([phantom.noise([3], SETTINGS), torch.randn_like(references)], dim=2)
    with torch.no_grad():
        for time in scheduler.timesteps:
            x[:, :, -2:] = references
            empty = x.clone()
            empty[:, :, -2:] = 0
            pos_it = model(x, time[None], prompt, return_dict=False)[0]
            pos_i = model(x, time[None], negative, return_dict=False)[0]
            neg = model(empty, time[None], negative, return_dict=False)[0]
            x = scheduler.step(neg + 5.0 * (pos_i - neg) + 7.5 * (pos_it - pos_i), time, x, return_dict=False)[0]
    assert torch.allclose(result.latents, x[:, :, :-2], atol=1e-3, rtol=1e-4)
    assert result.images.shape == (1, 3, 5, 48, 32)


def test_phantoms_own_guidance_is_its_three_passes(phantom: ContextAnyonePipeline) -> None:
    own = phantom.generate(pictures()[:1], PROMPT, SETTINGS).latents
    named = phantom.generate(pictures()[:1], PROMPT, replace(SETTINGS, guidance=DualGuidance(7.5, 5.0))).latents
    assert torch.equal(own, named)
    cfg = phantom.generate(pictures()[:1], PROMPT, replace(SETTINGS, guidance=CfgGuidance(5.0))).latents
    assert not torch.allclose(own, cfg, atol=1e-3)
    other = phantom.generate(pictures()[1:], PROMPT, SETTINGS).latents
    assert not torch.allclose(own, other, atol=1e-3)


def test_a_reference_of_another_size_is_refused(phantom: ContextAnyonePipeline) -> None:
    text = torch.zeros(1, phantom.config.text_len, phantom.config.text_dim)
    reading = TemporalConcatenation(phantom.transformer, ReferenceInputs([torch.zeros(1, 16, 1, 4, 4)], text, []))
    with pytest.raises(ShapeError, match="encode it for the video's width and height"):
        reading.velocity(torch.zeros(1, 16, 2, 6, 4), torch.zeros(1), text, with_reference=True)


def test_wan_is_phantom_without_a_reference(wan_folder: Path, phantom: ContextAnyonePipeline) -> None:
    wan = ContextAnyonePipeline.from_folder(wan_folder, spec=MODELS["wan"])
    settings = replace(SETTINGS, guidance=CfgGuidance(5.0))
    assert torch.equal(wan.generate([], PROMPT, SETTINGS).latents, phantom.generate([], PROMPT, settings).latents)


def test_the_negative_prompt_of_each(phantom: ContextAnyonePipeline) -> None:
    assert phantom.own_negative == DEFAULT_NEGATIVE  # a small text encoder has never seen the long one
    assert {name: spec.own_negative(512) == WAN_NEGATIVE for name, spec in MODELS.items()} == {
        "contextanyone": False,
        "wan": True,
        "phantom": True,
        "refalign": True,
        "bernini": True,
        "vace": True,
    }


def test_our_weights_are_no_wan(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="--model phantom needs the --weights of Phantom"):
        ContextAnyonePipeline.from_folder(tiny_folder, spec=MODELS["phantom"])


def test_parts_by_name_and_by_header(wan_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Wan's own download needs no renaming; beside it Phantom's file is found by its name."""
    shutil.copy(wan_file, tmp_path / "diffusion_pytorch_model.safetensors")
    shutil.copy(tiny_folder / "vae.safetensors", tmp_path / "Wan2.1_VAE.safetensors")
    assert find_component(tmp_path, "transformer") == tmp_path / "diffusion_pytorch_model.safetensors"
    assert find_component(tmp_path, "vae") == tmp_path / "Wan2.1_VAE.safetensors"
    assert find_component(tmp_path, "image_encoder") is None
    shutil.copy(wan_file, tmp_path / "Phantom-Wan-1.3B.safetensors")
    assert need_component(tmp_path, "transformer", MODELS["phantom"]) == tmp_path / "Phantom-Wan-1.3B.safetensors"
    assert need_component(tmp_path, "transformer", MODELS["wan"]) == tmp_path / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="several files for the transformer"):
        find_component(tmp_path, "transformer")
    with pytest.raises(CheckpointError, match=r"text_encoder\.safetensors is missing"):
        need_component(tmp_path, "text_encoder")
    save_file({"a": torch.zeros(1)}, tmp_path / "transformer.safetensors")
    assert find_component(tmp_path, "transformer") == tmp_path / "transformer.safetensors"
    (tmp_path / "phantom.safetensors").touch()
    assert find_component(tmp_path, "transformer", MODELS["phantom"]) == tmp_path / "phantom.safetensors"
    assert find_component(tmp_path, "transformer", MODELS["contextanyone"]) == tmp_path / "transformer.safetensors"


def test_ours_beside_the_public_files(wan_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    wan, ours = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "my_character.safetensors"
    shutil.copy(tiny_folder / "transformer.safetensors", ours)
    for model in ("contextanyone", "wan"):
        assert find_component(tmp_path, "transformer", MODELS[model]) == ours  # alone it runs as Wan too
    shutil.copy(wan_file, wan)
    assert find_component(tmp_path, "transformer", MODELS["contextanyone"]) == ours
    assert find_component(tmp_path, "transformer", MODELS["wan"]) == wan
    ours = ours.rename(tmp_path / "transformer.safetensors")
    assert find_component(tmp_path, "transformer", MODELS["contextanyone"]) == ours
    assert find_component(tmp_path, "transformer", MODELS["wan"]) == wan
    assert (
        find_component(tmp_path, "transformer", MODELS["phantom"]) == ours
    )  # which is refused, and says of what it is
    shutil.copy(wan_file, tmp_path / "Phantom-Wan-1.3B.safetensors")
    assert find_component(tmp_path, "transformer", MODELS["phantom"]) == tmp_path / "Phantom-Wan-1.3B.safetensors"
    assert find_component(tmp_path, "transformer", MODELS["wan"]) == wan
    ours.unlink()
    with pytest.raises(CheckpointError, match="several files for the transformer"):
        find_component(tmp_path, "transformer", MODELS["contextanyone"])


def test_in_a_folder_called_phantom_the_files_own_names_tell(wan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Phantom-Wan-Models"
    folder.mkdir()
    shutil.copy(wan_file, folder / "diffusion_pytorch_model.safetensors")
    assert recognise(folder / "diffusion_pytorch_model.safetensors").family.startswith("Phantom-Wan")
    shutil.copy(wan_file, folder / "Phantom-Wan-1.3B.safetensors")
    assert need_component(folder, "transformer", MODELS["phantom"]) == folder / "Phantom-Wan-1.3B.safetensors"
    assert need_component(folder, "transformer", MODELS["wan"]) == folder / "diffusion_pytorch_model.safetensors"
    for model in ("phantom", "wan"):
        assert misnamed_transformer(folder, MODELS[model]) is None
    (folder / "Phantom-Wan-1.3B.safetensors").rename(tmp_path / "wan2.1_t2v_1.3B.safetensors")
    assert misnamed_transformer(tmp_path, MODELS["wan"]) is None
    strange = misnamed_transformer(tmp_path, MODELS["phantom"])
    assert strange is not None
    assert strange.family.startswith("Wan 2.1 T2V")
    with pytest.raises(CheckpointError, match=r"serves as the vae, such as Wan's Wan2\.1_VAE\.pth"):
        need_component(folder, "vae")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save("good.png")
    return tmp_path


WORDS = ["--first", "A woman.", "--out", "out.webp", "--frames", "5", "--size", "32x32", "--steps", "1"]


@pytest.mark.parametrize(
    ("model", "more", "guidance"),
    [
        ("phantom", ["--reference", "good.png"], {"name": "dual", "guidance_scale": 7.5, "reference_scale": 5.0}),
        ("phantom", ["--reference", "good.png", "--guidance", "cfg"], {"name": "cfg", "guidance_scale": 5.0}),
        ("wan", [], {"name": "cfg", "guidance_scale": 5.0}),
    ],
)
def test_the_command(
    desk: Path,
    wan_folder: Path,
    model: str,
    more: list[str],
    guidance: dict[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["generate", "--model", model, "--weights", str(wan_folder), *WORDS, *more]) == 0
    metadata = read_metadata(desk / "out.webp")
    assert metadata["model"] == model
    given = metadata["settings"]["guidance"]
    assert {key: given[key] for key in guidance} == guidance
    assert "emphasis" not in metadata["settings"]
    said = capsys.readouterr().err
    assert "by its name" not in said
    assert "--size 832x480" not in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--model", "phanton"], "Did you mean phantom?"),
        (["--model", "wan", "--reference", "good.png"], "reads no pictures"),
        (["--model", "wan", "--guidance", "dual"], "has no dual guidance"),
        (["--model", "vace", "--reference-scale", "3"], "belongs to --guidance dual"),
        (["--model", "phantom", "--emphasis", "1"], "leave --emphasis out"),
        (["--model", "phantom"], "needs the --weights of Phantom"),
        (["--model", "vace"], "config.json is not there"),
    ],
)
def test_what_does_not_apply_is_refused(
    desk: Path, tiny_folder: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "--weights", str(tiny_folder), *WORDS, *words]) == 2
    err = capsys.readouterr().err
    assert hint in err
    assert err.count("\n") == 1
