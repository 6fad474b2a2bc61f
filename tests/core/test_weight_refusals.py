"""Files of weights that are refused: what they are, and what to do, in words."""

import json
import sys
import zipfile

import pytest
import torch
from torch.nn import Linear
from weight_forms import as_gguf, is_matrix, one_file, shards

from contextanyone_core.errors import CheckpointError, MissingDependencyError
from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.naming import WAN
from contextanyone_core.weights.recognition import recognise
from contextanyone_core.weights.source import open_source


def test_fun_v1_1_is_refused_by_name_with_what_to_use(wan_state, tmp_path):
    state = wan_state(in_dim=48, clip=48) | {
        "ref_conv.weight": torch.zeros(256, 16, 2, 2),
        "ref_conv.bias": torch.zeros(256),
    }
    path = one_file(state, tmp_path)
    assert recognise(path).family.startswith("Wan 2.1 Fun V1.1 Control")
    with pytest.raises(CheckpointError, match=r"Fun V1\.1 Control.*ref_conv.*use the first version.*Wan2\.1-Fun-1\.3B"):
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
    with pytest.raises(MissingDependencyError, match=r"needs the package gguf.* Run: pip install gguf$"):
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
