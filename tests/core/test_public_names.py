"""Public models with Wan T2V's tensors: told by the names of their files and folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from contextanyone_core.encoders.reference import is_on_white
from contextanyone_core.encoders.text import TextEncoder
from contextanyone_core.encoders.vae import load_vae
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model_specs import MODELS
from contextanyone_core.weights.locate import misnamed_transformer, need_component
from contextanyone_core.weights.name_tables import rename, transformer_table, vae_from_diffusers
from contextanyone_core.weights.recognition import recognise


def published(name: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    """A file or folder as its authors publish it, by name."""
    if name == "RefAlign":
        path = folder / "RefAlign-1.3B" / "diffusion_pytorch_model-refalign.safetensors"
        path.parent.mkdir()
        save_file(state, path)
        return path
    inner = folder / "Bernini-R-1.3B-Diffusers" / "transformer"
    inner.mkdir(parents=True)
    renamed = rename(state, transformer_table(2))
    names = sorted(renamed)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    files = {index: f"diffusion_pytorch_model-0000{index}-of-00002.safetensors" for index in halves}
    for index, half in halves.items():
        save_file({key: renamed[key].contiguous() for key in half}, inner / files[index])
    weight_map = {key: files[index] for index, half in halves.items() for key in half}
    index_file = inner / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index_file


@pytest.fixture
def wan_tensors(wan_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(wan_folder / "transformer.safetensors")


@pytest.mark.parametrize(
    ("name", "family", "alone"), [("RefAlign", "RefAlign", "RefAlign"), ("Bernini", "Bernini-R", "Wan 2.1 T2V")]
)
def test_published_names_are_recognised(
    name: str, family: str, alone: str, wan_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """RefAlign's file says what it is; Bernini's shards are told by their folder."""
    path = published(name, wan_tensors, tmp_path)
    assert recognise(path).family.startswith(family)
    assert recognise(path).own_family.startswith(alone)
    folder = path.parent if name == "RefAlign" else path.parent.parent
    found = need_component(folder, "transformer", MODELS[name.lower()])
    assert recognise(found).family.startswith(family)
    assert misnamed_transformer(folder, MODELS[name.lower()]) is None
    other = MODELS["refalign" if name == "Bernini" else "bernini"]
    strange = misnamed_transformer(folder, other)
    assert strange is not None
    assert strange.family.startswith(family)


def test_one_of_two_experts_is_told(wan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wan 2.2's two files have Wan 2.1's tensors: each alone would be run in steps that it was not made for."""
    folder = Path(shutil.copytree(wan_folder, tmp_path / "weights"))
    high = folder / "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
    (folder / "transformer.safetensors").rename(high)
    assert recognise(high).family.startswith("Wan 2.1 T2V")
    words = ["generate", "--model", "wan", "--weights", str(folder), "--later", "x", "--size", "32x32", "--frames", "5"]
    assert cli.main([*words, "--steps", "1", "--out", str(tmp_path / "out.webp")]) == 0
    told = "Wan 2.2's expert for high noise, half of a model: it is made for the first steps alone"
    assert told in capsys.readouterr().err
    assert recognise(wan_folder / "transformer.safetensors").half == ""
    inner = tmp_path / "low_noise_model" / "diffusion_pytorch_model.safetensors"
    inner.parent.mkdir()
    high.rename(inner)
    assert "for low noise" in recognise(inner).half
    assert recognise(shutil.copy(folder / "vae.safetensors", inner.parent)).half == ""


def test_shards_become_one_file_that_its_name_tells(
    wan_state: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """As docs/START.md has it: Bernini's diffusers folder for ComfyUI, which lists single files."""
    state = wan_state()
    folder, out = published("Bernini", state, tmp_path).parent, tmp_path / "bernini_r_1.3B.safetensors"
    assert cli.main(["convert", str(folder), "--dtype", "bfloat16", "--out", str(out)]) == 0
    assert recognise(out).own_family.startswith("Bernini-R")
    made = load_file(out)
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], tensor.bfloat16()) for name, tensor in state.items())


def test_one_folder_may_hold_several(wan_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = {"refalign": "RefAlign-1.3B", "bernini": "bernini_r_1.3B-bf16", "phantom": "Phantom-Wan-1.3B"}
    for name in [*names.values(), "diffusion_pytorch_model"]:
        save_file(wan_tensors, tmp_path / f"{name}.safetensors")
    for model, name in names.items():
        assert need_component(tmp_path, "transformer", MODELS[model]).stem == name
    assert need_component(tmp_path, "transformer", MODELS["wan"]).stem == "diffusion_pytorch_model"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 200, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.png")
    cut = np.full((40, 30, 4), 0, dtype=np.uint8)
    cut[5:-5, 5:-5] = 200
    Image.fromarray(cut, "RGBA").save("cut.png")
    return tmp_path


WORDS = ["--first", "A woman.", "--out", "out.webp", "--frames", "5", "--size", "32x32", "--steps", "1"]


def stack_of(wan_folder: Path, name: str, folder: Path) -> Path:
    """The tiny stack with its transformer under a public name."""
    stack = shutil.copytree(wan_folder, folder / "stack")
    tensors = load_file(stack / "transformer.safetensors")
    config = recognise_metadata(stack / "transformer.safetensors")
    (stack / "transformer.safetensors").unlink()
    save_file(tensors, stack / name, metadata=config)
    return stack


def recognise_metadata(path: Path) -> dict[str, str]:
    """The config of our file under Wan's kind: a tiny network's shapes do not tell its text length."""
    from contextanyone_core.weights.safetensors_file import read_header

    metadata = read_header(path).metadata
    return {"format": "pt", "kind": "wan-transformer", "config": metadata["config"]}


@pytest.mark.parametrize(
    ("name", "model", "guidance", "said"),
    [
        ("RefAlign-1.3B.safetensors", "refalign", "dual", "is run as RefAlign"),
        ("bernini_r_1.3B-bf16.safetensors", "bernini", "dual", "is run as Bernini"),
        ("Phantom-Wan-1.3B.safetensors", "phantom", "dual", "is run as Phantom"),
    ],
)
def test_auto_follows_the_name(
    desk: Path,
    wan_folder: Path,
    name: str,
    model: str,
    guidance: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stack = stack_of(wan_folder, name, desk)
    given = ["generate", "--model", "auto", "--weights", str(stack), "--reference", "photo.png", *WORDS]
    assert cli.main(given) == 0, capsys.readouterr().err
    metadata = read_metadata(desk / "out.webp")
    assert metadata["model"] == model
    assert metadata["settings"]["guidance"]["name"] == guidance
    err = capsys.readouterr().err
    assert said in err
    assert ("photo.png has a background" in err) == (model == "refalign")


def test_auto_assumes_wan_where_no_name_tells(desk: Path, wan_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_of(wan_folder, "model.safetensors", desk)
    assert cli.main(["generate", "--model", "auto", "--weights", str(stack), *WORDS]) == 0
    assert (
        "taken for plain Wan 2.1; if it is another, say --model phantom, refalign or bernini" in capsys.readouterr().err
    )
    assert cli.main(["generate", "--model", "auto", "--weights", str(desk / "none"), *WORDS]) == 2
    assert cli.main(["generate", "--model", "refalign", "--weights", str(stack), "--reference", "cut.png", *WORDS]) == 0
    err = capsys.readouterr().err
    assert "is by its name Wan 2.1 T2V" in err
    assert "has a background" not in err


def test_comfyuis_two_encoder_files_serve(
    desk: Path, wan_folder: Path, tiny_text: TextEncoder, spiece_model: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stack_of(wan_folder, "Phantom-Wan-1.3B.safetensors", desk)
    vae = load_vae(stack / "vae.safetensors")
    network, header = stack / "Phantom-Wan-1.3B.safetensors", recognise_metadata(wan_folder / "transformer.safetensors")
    of_wan = {"latents_mean": WAN_LATENTS_MEAN, "latents_std": WAN_LATENTS_STD, "text_len": 512}
    config = json.dumps(json.loads(header["config"]) | of_wan)  # as of a file that says nothing of these
    save_file(load_file(network), network, metadata=header | {"config": config})
    for part in ("vae", "text_encoder"):
        (stack / f"{part}.safetensors").unlink()
    text = {name: tensor for name, tensor in tiny_text.model.state_dict().items() if "embed_tokens" not in name}
    tokens = torch.frombuffer(bytearray(spiece_model), dtype=torch.uint8)
    save_file(text | {"spiece_model": tokens}, stack / "umt5_xxl_fp16.safetensors")
    save_file(vae_from_diffusers(vae.state_dict()), stack / "wan_2.1_vae.safetensors")
    given = ["generate", "--model", "phantom", "--weights", str(stack), "--reference", "photo.png", *WORDS]
    assert cli.main(given) == 0, capsys.readouterr().err
    used = json.dumps(read_metadata(desk / "out.webp"))
    assert "umt5_xxl_fp16.safetensors" in used
    assert "wan_2.1_vae.safetensors" in used


def test_auto_runs_ours_as_ours(desk: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "--model", "auto", "--weights", str(tiny_folder), "--reference", "photo.png", *WORDS]
    assert cli.main(given) == 0
    assert read_metadata(desk / "out.webp")["model"] == "contextanyone"


def test_plain_wan_has_two_passes_only(desk: Path, wan_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "--model", "wan", "--weights", str(wan_folder), "--guidance", "dual", *WORDS]
    assert cli.main(given) == 2
    assert "Wan 2.1 has no dual guidance" in capsys.readouterr().err


def test_the_border_tells_a_background() -> None:
    picture = torch.full((1, 3, 20, 10), -0.5)
    assert not is_on_white(picture)
    picture[:, :, :, :2] = picture[:, :, :, -2:] = 1.0
    assert is_on_white(picture)
