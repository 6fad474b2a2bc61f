"""LoRAs that widen the patch embedding, so that a text-to-video network follows poses (`reshape_weight`)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pose_cases import figure, sequence
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.lora import Lora, load_lora, merge_loras, save_lora
from contextanyone_core.weights.lora_updates import LowRank

CONFIG = ContextAnyoneConfig.tiny()
NAME = "diffusion_model.patch_embedding"
WIDE = (CONFIG.dim, 48, 1, 2, 2)
RANK = 5


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def update(channels=48):
    """A pair of an update of the patch embedding, as convolutions."""
    return draw(RANK, channels, 1, 2, 2), 0.1 * draw(CONFIG.dim, RANK, 1, 1, 1, seed=2)


def tensors(shape=WIDE, name=NAME, channels=48):
    down, up = update(channels)
    return {
        f"{name}.lora_A.weight": down,
        f"{name}.lora_B.weight": up,
        f"{name}.alpha": torch.tensor(2.0),
        f"{name}.reshape_weight": torch.tensor(shape),
    }


def write(path, **changes):
    save_file(tensors(**changes), path)
    return path


def run(model, condition=None):
    text = draw(1, CONFIG.text_len, CONFIG.text_dim, seed=3)
    references = ReferenceInputs([draw(1, 16, 1, 4, 4)], text, [draw(1, 3, CONFIG.image_dim, seed=4)])
    times, latents = torch.tensor([600.0]), draw(1, 16, 2, 4, 4, seed=5)
    with torch.no_grad():
        return model(latents, times, text, references=references, condition=condition).velocity


CONDITION = VideoCondition(draw(1, 16, 2, 4, 4, seed=6), draw(1, 16, 1, 4, 4, seed=7))


@pytest.mark.parametrize("name", [NAME, "lora_unet_patch_embedding", "patch_embedding"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_weight_is_padded_with_zeros_and_the_update_added(model, tmp_path, name, strength):
    before, unchanged = model.patch_embedding.weight.clone(), run(model)
    lora = load_lora(write(tmp_path / "pose.safetensors", name=name), model)
    assert (lora.unknown, lora.patch_shape) == ([], WIDE)
    assert model.config == CONFIG, "a file that is only read changes nothing"
    merge_loras(model, [(lora, strength)])
    down, up = update()
    wanted = strength * 2.0 / RANK * torch.einsum("or,ricjk->oicjk", up.flatten(1), down)
    wanted[:, :16] += before
    assert torch.allclose(model.patch_embedding.weight, wanted, atol=1e-6)
    assert model.config == replace(CONFIG, condition_dim=32)
    followed = run(model, CONDITION)
    whole = ContextAnyoneTransformer(model.config).eval()
    whole.load_state_dict(model.state_dict())
    assert torch.equal(run(whole, CONDITION), followed)
    assert not torch.allclose(followed, run(model), atol=1e-2)
    assert not torch.allclose(run(model), unchanged, atol=1e-2), "the old channels have an update too"


def test_two_add_up_and_an_update_of_the_old_channels_may_come_before(model, tmp_path):
    down, up = update(16)
    narrow = {f"{NAME}.lora_A.weight": down, f"{NAME}.lora_B.weight": up}
    save_file(narrow, tmp_path / "narrow.safetensors")
    before = model.patch_embedding.weight.clone()
    first = load_lora(tmp_path / "narrow.safetensors", model)
    pose = load_lora(write(tmp_path / "pose.safetensors"), model)
    with pytest.raises(CheckpointError, match=r"narrow.*update of patch_embedding is for \(48, 64\).*\(48, 192\)"):
        merge_loras(model, [(pose, 1.0), (first, 1.0)])
    assert torch.equal(model.patch_embedding.weight, before), "refused before anything is changed"
    assert model.config == CONFIG
    merge_loras(model, [(first, 1.0), (pose, 0.5), (pose, 0.25)])
    wide_down, wide_up = update()
    wanted = 0.75 * 2.0 / RANK * torch.einsum("or,ricjk->oicjk", wide_up.flatten(1), wide_down)
    wanted[:, :16] += before + torch.einsum("or,ricjk->oicjk", up.flatten(1), down)
    assert torch.allclose(model.patch_embedding.weight, wanted, atol=1e-5)


def test_a_wide_model_takes_it_as_it_is(model, tmp_path):
    model.add_condition_channels()
    with torch.no_grad():
        model.patch_embedding.weight[:, 16:] = draw(CONFIG.dim, 32, 1, 2, 2, seed=8)
    before = model.patch_embedding.weight.clone()
    lora = load_lora(write(tmp_path / "pose.safetensors"), model)
    assert lora.patch_shape is None
    merge_loras(model, [(lora, 1.0)])
    down, up = update()
    wanted = before + 2.0 / RANK * torch.einsum("or,ricjk->oicjk", up.flatten(1), down)
    assert torch.allclose(model.patch_embedding.weight, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (48, 32, 1, 2, 2), "channels": 32}, r"widens patch_embedding from \(48, 16.*\(48, 48, 1, 2, 2\)"),
        ({"shape": (48, 8, 1, 2, 2)}, "only the patch embedding can be widened"),
        ({"shape": (64, 48, 1, 2, 2)}, r"to \(64, 48, 1, 2, 2\), which is not supported"),
        ({"shape": (48, 48)}, "not supported"),
        ({"shape": ()}, "not supported"),
        ({"channels": 16}, r"update of patch_embedding is for \(48, 64\), the weight is \(48, 192\)"),
        ({"shape": (48, 96), "name": "diffusion_model.blocks.0.self_attn.q"}, "widens blocks.0.self_attn.q"),
    ],
)
def test_other_shapes_are_refused(model, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_lora(write(tmp_path / "pose.safetensors", **changes), model)
    assert model.config == CONFIG


def test_a_shape_without_an_update_is_not_used(model, tmp_path):
    kept = {f"{NAME}.reshape_weight": torch.tensor(WIDE), f"{NAME}.diff_b": torch.ones(CONFIG.dim)}
    save_file(kept, tmp_path / "pose.safetensors")
    lora = load_lora(tmp_path / "pose.safetensors", model)
    assert (lora.unknown, lora.patch_shape) == ([f"{NAME}.reshape_weight"], None)


def test_it_is_saved_as_comfyui_reads_it(model, tmp_path):
    down, up = update()
    lora = Lora("", {"patch_embedding": LowRank(down.flatten(1), up.flatten(1))}, {}, patch_shape=WIDE)
    save_lora(tmp_path / "pose.safetensors", lora, dtype=torch.float32)
    stored = load_file(tmp_path / "pose.safetensors")
    assert stored[f"{NAME}.reshape_weight"].tolist() == list(WIDE)
    assert stored[f"{NAME}.reshape_weight"].dtype == torch.int64
    assert torch.equal(stored[f"{NAME}.lora_A.weight"], down)
    assert torch.equal(stored[f"{NAME}.lora_B.weight"], up)
    again = load_lora(tmp_path / "pose.safetensors", model)
    assert again.patch_shape == WIDE
    merge_loras(model, [(again, 1.0)])
    assert torch.allclose(model.patch_embedding.weight[:, 16:].flatten(1), (up.flatten(1) @ down.flatten(1))[:, 64:])


SMALL = ("--frames", "5", "--size", "32x32", "--steps", "2", "--guidance-scale", "1", "--first", "A woman.")


def generated(folder, *words):
    """The pixels of a clip that the command makes, and its metadata."""
    assert cli.main([str(word) for word in ("generate", "--weights", folder, *SMALL, "--out", "o.webp", *words)]) == 0
    with Image.open("o.webp") as clip:
        frames = [np.asarray(clip.convert("RGB")) for index in range(clip.n_frames) if clip.seek(index) is None]
    return np.stack(frames), read_metadata(Path("o.webp"))


@pytest.mark.parametrize("kind", ["contextanyone", "wan"])
def test_the_command_follows_poses_by_the_file(tiny_folder, tmp_path, monkeypatch, capsys, kind):
    """A narrow model and the file are the widened model, ours and plain Wan's."""
    monkeypatch.chdir(tmp_path)
    bodies = [figure(neck=(160.0, 60.0 + frame), lengths=np.full(17, 30.0)) for frame in range(5)]
    Path("dance.json").write_text(json.dumps(to_json(sequence(bodies, (320, 320)))))
    narrow, wide = (Path(shutil.copytree(tiny_folder, tmp_path / name)) for name in ("narrow", "wide"))
    network = load_transformer(narrow / "transformer.safetensors")
    if kind == "wan":
        state, plain = network.state_dict(), replace(network.config, emphasize=False, image_dim=None)
        network = ContextAnyoneTransformer(plain)
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        save_transformer(narrow / "transformer.safetensors", network, dtype=torch.float32)
    write(tmp_path / "pose.safetensors")
    merge_loras(network, [(load_lora("pose.safetensors", network), 1.0)])
    save_transformer(wide / "transformer.safetensors", network, dtype=torch.float32)
    words = ("--model", kind, "--pose", "dance.json")
    found, metadata = generated(narrow, *words, "--lora", "pose.safetensors")
    assert (metadata["pose"]["name"], metadata["loras"][0]["name"]) == ("dance.json", "pose.safetensors")
    assert np.array_equal(found, generated(wide, *words)[0])
    assert not np.array_equal(found, generated(wide, "--model", kind)[0])
    capsys.readouterr()
    assert cli.main([str(word) for word in ("generate", "--weights", narrow, *SMALL, *words, "--out", "p.webp")]) == 2
    assert "pose LoRA" in capsys.readouterr().err
