"""`contextanyone convert`: other names and dtypes, back again without a loss, whatever the kind."""

import json
import re

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.checkpoints.convert import convert
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.encoders.vae import load_vae
from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.recognition import recognise
from contextanyone_core.weights.safetensors_file import read_header

PARTS = ("transformer", "vae", "text_encoder")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("naming", ["original", "comfyui", "diffusers"])
def test_names_lead_there_and_back(tiny_folder, tmp_path, part, naming):
    first = tiny_folder / f"{part}.safetensors"
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    convert(first, there, naming=naming)
    convert(there, back)
    assert read_header(there).metadata == read_header(first).metadata
    wanted, got = load_file(first), load_file(back)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_converted_file_of_ours_still_loads(tiny_folder, tmp_path):
    for naming in ("comfyui", "diffusers"):
        convert(tiny_folder / "transformer.safetensors", tmp_path / "other.safetensors", naming=naming)
        model, first = (
            load_transformer(tmp_path / "other.safetensors"),
            load_transformer(tiny_folder / "transformer.safetensors"),
        )
        assert model.config == first.config
        assert all(torch.equal(value, first.state_dict()[name]) for name, value in model.state_dict().items())
    convert(tiny_folder / "vae.safetensors", tmp_path / "vae.safetensors", naming="diffusers")
    load_vae(tmp_path / "vae.safetensors")
    convert(tiny_folder / "text_encoder.safetensors", tmp_path / "text.safetensors", naming="original")
    assert load_text_encoder(tmp_path / "text.safetensors").count_tokens("A woman.") > 1


def test_diffusers_names_are_diffusers(wan_file, tiny_folder, tmp_path):
    convert(wan_file, tmp_path / "wan.safetensors", naming="diffusers")
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=128, text_dim=64, ffn_dim=512, num_layers=2, rope_max_seq_len=64
        )
        vae = AutoencoderKLWan(base_dim=4, z_dim=16)
    assert load_file(tmp_path / "wan.safetensors").keys() == theirs.state_dict().keys()
    convert(tiny_folder / "vae.safetensors", tmp_path / "vae.safetensors", naming="diffusers")
    assert load_file(tmp_path / "vae.safetensors").keys() == vae.state_dict().keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
def test_dtypes(wan_file, tmp_path, dtype, capsys):
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(wan_file), "--naming", "comfyui", "--dtype", dtype, "--out", str(out)]) == 0
    capsys.readouterr()
    found = recognise(out)
    assert found.naming == "ComfyUI"
    assert found.kind == "wan-transformer"
    tensors, first = load_file(out), load_file(wan_file)
    wanted = getattr(torch, dtype)
    for name, tensor in tensors.items():
        value = first[name.removeprefix("model.diffusion_model.")]
        matrix = value.ndim == 2 and "blocks." in name
        stored = torch.bfloat16 if dtype == "float8_e4m3fn" and not matrix else wanted
        assert torch.equal(tensor.float(), value.to(stored).float()), name
        assert tensor.dtype is stored
    load_transformer(out, plain=True)


def test_fp8_of_the_encoders(tiny_folder, tmp_path):
    for part, fp8, kept in (
        ("image_encoder", "vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.post_layernorm.weight"),
        (
            "text_encoder",
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
    ):
        convert(tiny_folder / f"{part}.safetensors", tmp_path / f"{part}.safetensors", dtype=torch.float8_e4m3fn)
        tensors = load_file(tmp_path / f"{part}.safetensors")
        assert (tensors[fp8].dtype, tensors[kept].dtype) == (torch.float8_e4m3fn, torch.bfloat16)
    load_image_encoder(tmp_path / "image_encoder.safetensors")
    load_text_encoder(tmp_path / "text_encoder.safetensors")
    with pytest.raises(InputError, match=r"is a .* VAE .*--dtype bfloat16"):
        convert(tiny_folder / "vae.safetensors", tmp_path / "vae.safetensors", dtype=torch.float8_e4m3fn)
    assert not (tmp_path / "vae.safetensors").exists()


def test_values_beyond_fp8_are_held_at_its_end(wan_state, tmp_path):
    state = wan_state()
    state["blocks.0.ffn.0.weight"][0, 0] = 1000.0
    torch.save(state, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors", dtype=torch.float8_e4m3fn)
    assert load_file(tmp_path / "out.safetensors")["blocks.0.ffn.0.weight"][0, 0].float() == 448
    state["blocks.0.ffn.0.weight"][0, 0] = 1e30
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=r"infinite values in blocks\.0\.ffn\.0\.weight in torch\.float16"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", dtype=torch.float16)


def test_what_cannot_be_converted_says_why(tiny_folder, wan_file, tmp_path, capsys):
    image = tiny_folder / "image_encoder.safetensors"
    for words, hint in (
        ([image, "--naming", "original"], "text tower"),
        ([wan_file, "--naming", "diffuser"], "Did you mean diffusers?"),
        ([tiny_folder, "--naming", "original"], "give one file"),
    ):
        out = ["--out", tmp_path / "o.safetensors"]
        assert cli.main([str(word) for word in ["convert", *words, *out]]) == 2
        assert hint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_transformer_with_holes_is_not_converted(wan_state, tmp_path):
    for name, broken in (
        ("blocks.1.norm3.weight", {}),
        ("blocks.1.norm3.weight is 3, needed 256", {"blocks.1.norm3.weight": torch.ones(3)}),
        ("patch_embedding.weight", {"patch_embedding.bias": torch.ones(256)}),
    ):
        state = wan_state()
        del state[name.partition(" ")[0]]
        torch.save(state | broken, tmp_path / "in.pth")
        with pytest.raises(CheckpointError, match=name):
            convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("part", ["vae", "text_encoder", "image_encoder"])
def test_an_encoder_with_holes_is_not_converted(tiny_folder, tmp_path, part):
    state = load_file(tiny_folder / f"{part}.safetensors")
    with safe_open(tiny_folder / f"{part}.safetensors", "pt") as file:
        metadata = file.metadata()
    lost = sorted(name for name in state if name.endswith("weight") and "shared" not in name)[-1]
    save_file({name: value for name, value in state.items() if name != lost}, tmp_path / "in.safetensors", metadata)
    with pytest.raises(CheckpointError, match=re.escape(lost)):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    convert(tiny_folder / f"{part}.safetensors", tmp_path / "out.safetensors")


def test_no_shard_of_the_input_is_replaced(wan_state, tmp_path, capsys):
    state, names = wan_state(), {}
    for index, name in enumerate(sorted(state)):
        names[name] = f"model-{index % 2 + 1:05}-of-00002.safetensors"
    for shard in set(names.values()):
        save_file({name: state[name] for name, file in names.items() if file == shard}, tmp_path / shard)
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": names}))
    shard = tmp_path / "model-00001-of-00002.safetensors"
    before = shard.read_bytes()
    for command in (["convert", index_file], ["init", "--backbone", index_file]):
        assert cli.main([*map(str, command), "--out", str(shard)]) == 2
        assert "would overwrite what is read" in capsys.readouterr().err
    assert shard.read_bytes() == before
    assert cli.main(["convert", str(index_file), "--out", str(tmp_path / "whole.safetensors")]) == 0
