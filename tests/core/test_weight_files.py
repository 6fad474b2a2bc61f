"""Wan's transformer in every public form: recognised from the header, loaded with the right values."""

import json
import re
import sys
import zipfile
from dataclasses import replace
from functools import partial

import gguf
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch.nn import Linear

from contextanyone_core import cli
from contextanyone_core.config import WAN_LATENTS_STD, ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError, MissingDependencyError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import describe, load_transformer
from contextanyone_core.weights.name_tables import rename, transformer_table
from contextanyone_core.weights.naming import TRANSFORMER, WAN
from contextanyone_core.weights.recognition import FAMILY, recognise
from contextanyone_core.weights.saved_header import HEADER, header_tensor
from contextanyone_core.weights.source import open_source

FP8 = torch.float8_e4m3fn


def is_matrix(name, tensor):
    return tensor.ndim == 2 and name.startswith("blocks.")


def original_pth(state, folder):
    torch.save(state, folder / "Wan2.1-T2V.pth")
    return folder / "Wan2.1-T2V.pth"


def nested_pth(state, folder):
    views = {name: torch.stack((tensor, tensor))[1] for name, tensor in state.items()}  # storages with an offset
    views["head.head.weight"] = state["head.head.weight"].T.contiguous().T
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in views.items()}
    torch.save({"state_dict": parameters, "step": 3}, folder / "model.pth")
    return folder / "model.pth"


def one_file(state, folder, prefix="", name="diffusion_pytorch_model.safetensors", metadata=None):
    save_file({prefix + key: tensor.contiguous() for key, tensor in state.items()}, folder / name, metadata=metadata)
    return folder / name


def shards(state, folder):
    names, weight_map = sorted(state), {}
    for index in range(3):
        file = f"diffusion_pytorch_model-{index + 1:05}-of-00003.safetensors"
        save_file({name: state[name] for name in names[index::3]}, folder / file)
        weight_map |= dict.fromkeys(names[index::3], file)
    index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index_file


def fp8(state, folder):
    return one_file({k: v.to(FP8 if is_matrix(k, v) else torch.bfloat16) for k, v in state.items()}, folder)


def scaled(state, folder, weight, extra, prefix="", metadata=None):
    stored = {}
    for name, tensor in state.items():
        stored[name] = tensor.bfloat16()
        if is_matrix(name, tensor):
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(FP8)
            layer = name.removesuffix(".weight")
            stored |= {f"{layer}.{weight}": scale.clone()} | extra(layer)
    if weight == "scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return one_file(stored, folder, prefix, metadata=metadata)


def scaled_old(state, folder):
    return scaled(state, folder, "scale_weight", lambda layer: {f"{layer}.scale_input": torch.ones(())})


def scaled_new(state, folder):
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    return scaled(
        state,
        folder,
        "weight_scale",
        lambda layer: {f"{layer}.comfy_quant": note.clone(), f"{layer}.input_scale": torch.ones(())},
        "model.diffusion_model.",
    )


def scaled_by_header(state, folder):
    layers = {k.removesuffix(".weight"): {"format": "float8_e4m3fn"} for k, v in state.items() if is_matrix(k, v)}
    note = json.dumps({"format_version": "1.0", "layers": layers})
    return scaled(state, folder, "weight_scale", lambda layer: {}, metadata={"_quantization_metadata": note})


def as_gguf(state, folder, kind=gguf.GGMLQuantizationType.Q8_0, flatten=False):
    path = folder / "wan2.1-t2v-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array("tokenizer.list", [f"piece {index}" for index in range(50)])
    for name, tensor in state.items():
        values = tensor.numpy()
        if is_matrix(name, tensor):
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        elif flatten and values.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            writer.add_tensor(name, values.reshape(values.shape[0], -1).astype(np.float16))
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def without_five_sides(state, folder):
    """As programs write it that do not know ComfyUI's note of the shape: ggml's four sides."""
    return as_gguf(
        {name: tensor.flatten(0, 1) if tensor.ndim > 4 else tensor for name, tensor in state.items()}, folder
    )


def wrapped(state, folder):
    """torch.compile of each block, inside FSDP, inside DDP."""
    names = {
        name: re.sub(r"^(blocks\.\d+\.)", r"\1_orig_mod.", name).replace(".ffn.", ".ffn._fsdp_wrapped_module.")
        for name in state
    }
    return one_file({names[name]: tensor for name, tensor in state.items()}, folder, "module._fsdp_wrapped_module.")


def nested(*keys):
    def write(state, folder):
        content = state
        for key in reversed(keys):
            content = {key: content, "step": 7, "optimizer": {"state": {"a": {"exp_avg": torch.ones(2)}}}}
        torch.save(content, folder / "nested.pth")
        return folder / "nested.pth"

    return write


def diffusers_folder(state, folder):
    save_file(
        {k: v.contiguous() for k, v in rename(state, transformer_table(2)).items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    (folder / "config.json").write_text("{}")
    return folder


FORMS = {
    "original .pth": (original_pth, "original", "", 0),
    "a .pth with views and parameters": (nested_pth, "original", "", 0),
    "safetensors": (one_file, "original", "", 0),
    "shards": (shards, "original", "", 0),
    "a folder of shards": (lambda *given: shards(*given).parent, "original", "", 0),
    "ComfyUI": (lambda *given: one_file(*given, "model.diffusion_model."), "ComfyUI", "", 0),
    "ComfyUI, short prefix": (lambda *given: one_file(*given, "diffusion_model."), "ComfyUI", "", 0),
    "fp8": (fp8, "original", "fp8_e4m3fn", 0.04),
    "scaled fp8, older": (scaled_old, "original", "scaled fp8", 0.04),
    "scaled fp8, newer": (scaled_new, "ComfyUI", "scaled fp8", 0.04),
    "scaled fp8, by header": (scaled_by_header, "original", "scaled fp8", 0.04),
    "GGUF": (as_gguf, "original", "GGUF Q8_0", 0.02),
    "GGUF with a kept shape": (lambda *given: as_gguf(*given, flatten=True), "original", "GGUF Q8_0", 0.02),
    "GGUF in four bits": (
        lambda *given: as_gguf(*given, gguf.GGMLQuantizationType.Q4_0),
        "original",
        "GGUF Q4_0",
        0.2,
    ),
    "diffusers folder": (diffusers_folder, "diffusers", "", 0),
    "GGUF with four sides": (without_five_sides, "original", "GGUF Q8_0", 0.02),
    "compiled, FSDP and DDP": (wrapped, "original", "", 0),
    **{
        f"prefix {prefix}": (partial(one_file, prefix=prefix), "original", "", 0)
        for prefix in ("module.", "_orig_mod.", "model.", "transformer.", "_fsdp_wrapped_module.", "module.model.")
    },
    "a .pth under generator_ema": (nested("generator_ema"), "original", "", 0),
    "a .pth two keys down": (nested("state", "ema"), "original", "", 0),
}


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


def test_fun_v1_1_is_refused_by_name_with_what_to_use(wan_state, tmp_path):
    state = wan_state(in_dim=48, clip=48) | {
        "ref_conv.weight": torch.zeros(256, 16, 2, 2),
        "ref_conv.bias": torch.zeros(256),
    }
    path = one_file(state, tmp_path)
    assert recognise(path).family.startswith("Wan 2.1 Fun V1.1 Control")
    with pytest.raises(CheckpointError, match=r"Fun V1\.1 Control.*ref_conv.*use the first version.*Wan2\.1-Fun-1\.3B"):
        load_transformer(path, plain=True)


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


def test_a_plain_backbone_is_an_error_unless_it_is_asked_for(wan_file):
    with pytest.raises(CheckpointError, match=r"Wan 2\.1 T2V .* without Emphasize-Attention.*contextanyone init"):
        load_transformer(wan_file)


def test_a_backbone_with_a_hole_lists_it(wan_state, tmp_path):
    state = wan_state()
    del state["blocks.1.ffn.2.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.1\.ffn\.2\.bias"):
        load_transformer(one_file(state, tmp_path), plain=True)


def test_other_quantisations_are_refused_by_name(wan_state, tmp_path):
    note = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    path = one_file(wan_state() | {"blocks.0.ffn.0.comfy_quant": note}, tmp_path)
    with pytest.raises(CheckpointError, match="quantised as nvfp4"):
        open_source(path)


def test_weights_as_integers_are_refused(wan_state, tmp_path):
    path = one_file({k: (100 * v).to(torch.int8) if is_matrix(k, v) else v for k, v in wan_state().items()}, tmp_path)
    for read in (open_source, lambda path: load_transformer(path, plain=True)):
        with pytest.raises(CheckpointError, match=r"quantised: it holds blocks\.\S+ as I8.*use a file in bf16"):
            read(path)


def test_gguf_without_its_package_names_the_command(wan_state, tmp_path, monkeypatch):
    path = as_gguf(wan_state(), tmp_path)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    assert recognise(path).quantisation == "GGUF Q8_0"
    with pytest.raises(MissingDependencyError, match=r"contextanyone\[gguf\]"):
        load_transformer(path, plain=True)


class Evil:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('ran').touch()",))


def test_a_pth_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, content in enumerate((Evil(), {"a": torch.zeros(2), "b": Evil()}, {"a": Linear(2, 2)})):
        torch.save(content, f"{index}.pth")
        with pytest.raises(CheckpointError, match="is refused: its pickle"):
            recognise(f"{index}.pth")
    assert not (tmp_path / "ran").exists()


def test_a_pth_whose_tensors_claim_more_than_it_holds_is_refused(tmp_path):
    huge = torch.zeros(1).expand(1_000_000, 1_000)
    torch.save({"a": huge}, tmp_path / "expanded.pth")
    with pytest.raises(CheckpointError, match="larger than its bytes"):
        recognise(tmp_path / "expanded.pth")
    one = torch.zeros(1000)
    torch.save({str(index): one for index in range(100)}, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match="claim more bytes"):
        recognise(tmp_path / "many.pth")
    with zipfile.ZipFile(tmp_path / "zipped.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="compressed"):
        recognise(tmp_path / "zipped.pth")


def test_a_pth_of_several_models_says_their_keys(wan_state, tmp_path):
    state = wan_state()
    ema = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "ema": ema}, tmp_path / "two.pth")
    keys = r"under the keys 'model' \(\d+ tensors\), 'ema' \(\d+ tensors\); save the one that is meant by itself"
    command = (
        r"torch\.save\(torch\.load\('two\.pth', map_location='cpu', weights_only=True\)\['model'\], 'chosen\.pth'\)\."
    )
    with pytest.raises(CheckpointError, match=f"{keys}, as by {command}$"):
        recognise(tmp_path / "two.pth")
    torch.save({"model": state, "ema": state}, tmp_path / "one.pth")  # one model under two keys
    assert recognise(tmp_path / "one.pth").kind == WAN


def test_one_tensor_under_two_names_is_refused(wan_state, tmp_path):
    state = wan_state()
    path = one_file(state | {"_orig_mod.head.head.bias": state["head.head.bias"] + 1}, tmp_path)
    with pytest.raises(CheckpointError, match=r"1 unknown: \S*head\.head\.bias"):
        load_transformer(path, plain=True)


def test_shapes_that_no_model_has_are_said_in_words(wan_state, tmp_path):
    for name, shape, sides in (("patch_embedding.weight", (4,), "5"), ("text_embedding.0.weight", (), "2")):
        path = one_file(wan_state() | {name: torch.zeros(shape)}, tmp_path)
        with pytest.raises(CheckpointError, match=rf"{name} has the shape .*; {sides} sides are needed"):
            load_transformer(path, plain=True)


def test_an_index_must_stay_in_its_folder(wan_state, tmp_path):
    index = shards(wan_state(), tmp_path)
    names = json.loads(index.read_text())["weight_map"]
    for name, message in (("../x.safetensors", "own folder"), ("gone.safetensors", "does not exist")):
        index.write_text(json.dumps({"weight_map": names | {"head.modulation": name}}))
        with pytest.raises(CheckpointError, match=message):
            recognise(index)
    index.write_text(json.dumps({"weight_map": names | {"more": names["head.modulation"]}}))
    with pytest.raises(CheckpointError, match="not in the shards"):
        recognise(index)


def test_a_whole_pipeline_names_its_parts(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "transformer").mkdir()
    with pytest.raises(CheckpointError, match="give one of its folders: transformer"):
        recognise(tmp_path)


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
    shard = tmp_path / "both" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    assert cli.main(["inspect", str(shard)]) == 0
    assert "one shard of several; give their index" in capsys.readouterr().out


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
