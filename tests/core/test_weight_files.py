"""Wan's transformer in every public form: recognised from the header, loaded with the right values."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from weight_forms import FORMS, diffusers_folder, fp8, one_file, original_pth, shards

from contextanyone_core import cli
from contextanyone_core.config import WAN_LATENTS_STD, ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import describe, load_transformer
from contextanyone_core.weights.naming import TRANSFORMER, WAN
from contextanyone_core.weights.recognition import FAMILY, recognise
from contextanyone_core.weights.saved_header import HEADER, header_tensor
from contextanyone_core.weights.source import open_source


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_and_loads(wan_state, tmp_path, form):
    write, naming, quantisation, tolerance = FORMS[form]
    state = wan_state()
    path = write(state, tmp_path)
    found = recognise(path)
    assert (found.kind, found.naming, found.quantisation) == (WAN, naming, quantisation), found
    assert found.family == "Wan 2.1 T2V of width 256 with 2 blocks"
    model = load_transformer(path, plain=True, dtype=torch.float32)
    assert (model.config.num_heads, model.config.image_dim, model.config.emphasize) == (2, None, False)
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.allclose(loaded[name], tensor, atol=tolerance * tensor.abs().max().item(), rtol=0), name


def test_storage_dtypes_become_ones_that_compute(wan_state, tmp_path):
    model = load_transformer(fp8(wan_state(), tmp_path), plain=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_real_diffusers_folder_gives_the_same_velocity(tmp_path):
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=64, freq_dim=256,
        ffn_dim=512, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    theirs.save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load_transformer(tmp_path, plain=True)
    latents, timesteps, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 512, 64)
    with torch.no_grad():
        wanted = theirs(latents, timesteps, text).sample
        assert torch.allclose(ours(latents, timesteps, text).velocity, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "family"),
    [
        ({}, "Wan 2.1 T2V of width"),
        ({"in_dim": 36, "clip": 48}, "Wan 2.1 I2V or Fun InP"),
        ({"in_dim": 48, "out": 48}, "Wan 2.2 TI2V"),
    ],
)
def test_relatives_are_told_apart(wan_state, tmp_path, sizes, family):
    path = one_file(wan_state(**sizes), tmp_path)
    assert recognise(path).family.startswith(family)
    if sizes:
        with pytest.raises(CheckpointError, match=r"takes other inputs; Wan 2\.1 T2V, Phantom-Wan"):
            load_transformer(path, plain=True)


@pytest.mark.parametrize(
    ("sizes", "family"),
    [({"in_dim": 48, "clip": 48}, "Wan 2.1 Fun Control"), ({"in_dim": 48}, "Wan T2V with condition channels")],
)
def test_condition_channels_are_recognised_and_load(wan_state, tmp_path, sizes, family):
    path = one_file(wan_state(**sizes), tmp_path)
    assert recognise(path).family.startswith(family)
    found = describe(path)
    assert (found.config["in_dim"], found.config["condition_dim"], found.config["out_dim"]) == (16, 32, 16)
    assert found.config["latents_std"] == list(WAN_LATENTS_STD)
    assert not found.differences
    assert load_transformer(path, plain=True).patch_embedding.weight.shape[1] == 48


def test_phantom_is_told_by_its_name_only(wan_state, tmp_path):
    assert recognise(one_file(wan_state(), tmp_path, name="Phantom-Wan-1.3B.safetensors")).family.startswith("Phantom")


@pytest.mark.parametrize(("sizes", "family"), [((1536, 8960, 30), "1.3B"), ((5120, 13824, 40), "14B")])
def test_the_published_sizes_have_their_names(wan_shapes, tmp_path, sizes, family):
    """The very shapes of the 1.3B and 14B files, as headers over a sparse file."""
    path = tmp_path / "wan.safetensors"
    offset, header = 0, {}
    for name, shape in wan_shapes(*sizes).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    assert str(recognise(path)) == f"a Wan 2.1 T2V {family} transformer (safetensors, original naming)"
    config = open_source(path).config()
    assert (config["dim"], config["ffn_dim"], config["num_layers"]) == sizes
    assert config["num_heads"] == sizes[0] // 128


def test_vace_is_named(wan_state, tmp_path):
    state = wan_state() | {"vace_patch_embedding.weight": torch.zeros(256, 96, 1, 2, 2)}
    path = one_file(state, tmp_path)
    assert "VACE" in str(recognise(path))
    with pytest.raises(CheckpointError, match=r"VACE.*takes other inputs"):
        load_transformer(path, plain=True)


def test_inspect_names_what_it_is(wan_file, tmp_path, wan_state, capsys):
    path = original_pth(wan_state(), tmp_path)
    for given, form in ((wan_file, "safetensors"), (path, "a .pth of torch.save")):
        assert cli.main(["inspect", str(given)]) == 0
        out = capsys.readouterr().out
        assert f"a Wan 2.1 T2V of width 256 with 2 blocks transformer ({form}, original naming)" in out
        assert "inferred from the shapes" in out
        assert "complete" in out


def test_inspect_names_all_models_of_a_folder(wan_state, tmp_path, capsys):
    """A download with a .pth alone, with shards and a .pth, and a diffusers pipeline."""
    for folder, write in (("alone", None), ("both", shards), ("pipeline", diffusers_folder)):
        place = tmp_path / folder
        (place / "transformer").mkdir(parents=True)
        torch.save(wan_state(), place / "Phantom-Wan-1.3B.pth")
        if write is not None:
            write(wan_state(), place if write is shards else place / "transformer")
        assert cli.main(["inspect", str(place)]) == 0
        out = capsys.readouterr().out
        assert "Phantom-Wan of width" in out
        assert out.count("parts:       complete") == (1 if write is None else 2)


def test_every_shard_alone_says_that_it_is_one(wan_state, tmp_path, capsys):
    """Also the one with the head, by whose tensors a whole model is known."""
    shards(wan_state(), tmp_path)
    for shard in sorted(tmp_path.glob("*-of-*")):
        assert cli.main(["inspect", str(shard)]) == 0
        assert "one shard of several; give their index" in capsys.readouterr().out
        assert cli.main(["convert", str(shard), "--out", str(tmp_path / "whole.safetensors")]) != 0
        problem = capsys.readouterr().err
        assert "one shard of several; give their index" in problem
        assert "Download it again" not in problem


def test_our_files_keep_their_config(tiny_folder, tmp_path):
    source = open_source(tiny_folder / "transformer.safetensors")
    assert source.recognised.kind == TRANSFORMER
    assert source.recognised.stated
    assert source.config()["text_len"] == 64


def without_metadata(path, target, extra, prefix="model.diffusion_model."):
    """A file as a saver writes it that knows nothing of ours: prefixed names, no header's text."""
    tensors = load_file(path) | extra
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, target)
    return target


def test_a_header_that_travels_as_a_tensor_is_read(tiny_folder, tmp_path):
    path = tiny_folder / "transformer.safetensors"
    own = open_source(path)
    stated = header_tensor({"config": own.metadata["config"], FAMILY: ""})
    source = open_source(without_metadata(path, tmp_path / "saved.safetensors", {HEADER: stated}))
    assert source.config() == own.config()
    assert source.unknown == []
    assert source.tensors == own.tensors
    again = load_transformer(tmp_path / "saved.safetensors").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in load_file(path).items())


def test_the_family_travels_with_a_saved_header(tmp_path):
    small = replace(
        ContextAnyoneConfig.wan_1_3b(), dim=128, ffn_dim=64, num_heads=1, num_layers=1, emphasize=False, image_dim=None
    )
    save_file(ContextAnyoneTransformer(small).state_dict(), tmp_path / "a.safetensors")
    stated = header_tensor({"config": json.dumps(small.to_dict()), FAMILY: "Phantom-Wan"})
    saved = without_metadata(tmp_path / "a.safetensors", tmp_path / "b.safetensors", {HEADER: stated})
    assert recognise(tmp_path / "a.safetensors").family.startswith("Wan 2.1 T2V")
    assert recognise(saved).family.startswith("Phantom-Wan")


def test_a_small_model_without_its_config_is_refused(tiny_folder, tmp_path):
    path = without_metadata(tiny_folder / "transformer.safetensors", tmp_path / "bare.safetensors", {})
    with pytest.raises(CheckpointError, match="its config is missing, and with text embeddings 32 wide"):
        load_transformer(path)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3), torch.tensor([91, 93], dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)]
)
def test_a_saved_header_that_is_not_one_is_refused(tiny_folder, tmp_path, wrong):
    path = without_metadata(tiny_folder / "transformer.safetensors", tmp_path / "bad.safetensors", {HEADER: wrong})
    with pytest.raises(CheckpointError, match="its contextanyone_header is not readable"):
        open_source(path)


def test_empty_tensors_are_read(tmp_path):
    for name in ("a.safetensors", "a.pth"):
        (save_file if name.endswith("s") else torch.save)({"a": torch.zeros(0, 3)}, tmp_path / name)
        assert open_source(tmp_path / name).read("a", torch.bfloat16).shape == (0, 3)


@pytest.mark.parametrize(
    ("form", "dtype", "more", "named"),
    [
        ("nvfp4", torch.uint8, {"weight_scale_2": torch.ones(())}, "nvfp4"),
        ("mxfp8", torch.float8_e4m3fn, {"weight_scale": torch.zeros(256, 8, dtype=torch.uint8)}, "mxfp8"),
        ("int8_tensorwise", torch.int8, {"weight_scale": torch.ones(256, 1)}, "int8"),
    ],
)
def test_what_comfyuis_layers_unpack_is_named_and_left_to_them(wan_state, tmp_path, capsys, form, dtype, more, named):
    state, layer = wan_state(), "blocks.0.self_attn.q"
    weight = state[f"{layer}.weight"]
    state[f"{layer}.weight"] = (weight[:, ::2] if form == "nvfp4" else weight).contiguous().to(dtype)
    note = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    state |= {f"{layer}.comfy_quant": note} | {f"{layer}.{leaf}": tensor for leaf, tensor in more.items()}
    path = one_file(state, tmp_path)
    assert named in str(recognise(path))
    with pytest.raises(
        CheckpointError, match=f"quantised as {form}, which needs ComfyUI's layers: load it there"
    ) as told:
        open_source(path)
    assert "\n" not in str(told.value)
    for_host = open_source(path, host_layers=True)
    assert for_host.formats == {form}
    assert for_host.tensors[f"{layer}.weight"].shape == weight.shape
    assert not for_host.unknown
    assert cli.main(["inspect", str(path)]) == 2
    assert "Load ContextAnyone" in capsys.readouterr().err
