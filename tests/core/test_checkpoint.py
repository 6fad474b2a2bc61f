"""Weight files: whole or not at all, strict in both directions, and never trusted."""

import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import (
    describe,
    load_tensors,
    load_transformer,
    save_safetensors,
    save_transformer,
)
from contextanyone_core.weights.comparison import Differences
from contextanyone_core.weights.naming import TRANSFORMER, VAE
from contextanyone_core.weights.safetensors_file import read_header
from contextanyone_core.weights.writer import OnDemand

CONFIG = ContextAnyoneConfig.tiny()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_transformer(path, model, dtype=torch.float16, extra={"seed": "7"})
    return path


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def rewrite(path, change, **metadata):
    tensors = load_tensors(path)
    change(tensors)
    header = read_header(path)
    save_file(tensors, path, metadata=header.metadata | metadata)


def test_a_transformer_comes_back(model, saved):
    loaded = load_transformer(saved, dtype=torch.float32)
    assert loaded.config == CONFIG
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name
    assert {p.dtype for p in load_transformer(saved).parameters()} == {torch.float16}
    inputs = torch.randn(1, 16, 1, 2, 2), torch.tensor([500.0]), torch.randn(1, CONFIG.text_len, CONFIG.text_dim)
    assert loaded(*inputs).velocity.isfinite().all()


def test_the_header_says_what_it_is(saved):
    header = read_header(saved)
    assert header.kind == TRANSFORMER
    assert ContextAnyoneConfig.from_dict(header.config) == CONFIG
    assert header.metadata["seed"] == "7"
    assert header.metadata["format"] == "pt"
    assert header.tensors["patch_embedding.weight"].shape == (CONFIG.dim, 16, 1, 2, 2)
    assert header.tensors["patch_embedding.weight"].dtype == "F16"


def test_equal_weights_are_equal_bytes(tmp_path):
    """safetensors alone orders a header's metadata at random."""
    extra = {"record": 'one "line"\n\ttwo', "name": "Zoë 龙 \x01\x7f", "a": ""}
    files = [tmp_path / f"{number}.safetensors" for number in range(12)]
    for file in files:
        save_safetensors(file, {"w": torch.ones(3), "b": torch.zeros(2)}, kind=VAE, config={"z": 1}, extra=extra)
    assert len({file.read_bytes() for file in files}) == 1
    metadata = read_header(files[0]).metadata
    assert list(metadata) == sorted({"format", "kind", "config", *extra})
    assert {name: metadata[name] for name in extra} == extra
    assert torch.equal(load_tensors(files[0], kind=VAE)["w"], torch.ones(3))


def test_missing_unknown_and_misshaped_tensors_are_all_listed(saved):
    def change(tensors):
        del tensors["blocks.0.emphasize_attn.o.weight"]
        tensors["blocks.0.vace.weight"] = torch.zeros(2)
        tensors["head.modulation"] = torch.zeros(1, 2, 5)

    rewrite(saved, change)
    with pytest.raises(CheckpointError) as caught:
        load_transformer(saved)
    message = str(caught.value)
    assert "1 missing: blocks.0.emphasize_attn.o.weight" in message
    assert "1 unknown: blocks.0.vace.weight" in message
    assert "head.modulation is 1x2x5, needed 1x2x48" in message
    found = describe(saved).differences
    assert found.missing == ["blocks.0.emphasize_attn.o.weight"]
    assert found.unknown == ["blocks.0.vace.weight"]
    assert len(found.wrong_shape) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(saved, value):
    rewrite(saved, lambda tensors: tensors["head.head.bias"].fill_(value))
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in head\.head\.bias"):
        load_transformer(saved)


def test_another_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_safetensors(path, {"conv1.weight": torch.zeros(2)}, kind=VAE, config={})
    with pytest.raises(CheckpointError, match="is a wan-vae file; a contextanyone-transformer file is needed"):
        load_transformer(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.middle.0.residual.0.gamma", "by its tensor names a Wan 2.1 VAE"),
        ("model.diffusion_model.head.modulation", "not those of a whole wan-transformer"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "a LoRA"),
        ("anything", "of no known kind"),
    ],
)
def test_a_file_without_our_header_is_recognised_by_its_names(tmp_path, name, message):
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(path)
    assert not describe(path).recognised.stated


def test_a_config_of_another_version_is_refused(saved):
    rewrite(saved, lambda tensors: None, config=json.dumps(CONFIG.to_dict() | {"gapp": 3}))
    for read in (load_transformer, describe):
        with pytest.raises(CheckpointError, match=r"config that this version cannot read.*Did you mean gap"):
            read(saved)


@pytest.mark.parametrize("change", [{"num_layers": 10**9}, {"dim": 2**62, "num_heads": 1}, {"ffn_dim": 10**40}])
def test_an_absurd_config_is_refused_at_once(saved, change):
    rewrite(saved, lambda tensors: None, config=json.dumps(CONFIG.to_dict() | change))
    for read in (load_transformer, describe):
        with pytest.raises(CheckpointError, match="config"):
            read(saved)


def test_describe_counts_without_loading(model, saved):
    found = describe(saved)
    assert (found.recognised.kind, found.recognised.stated) == (TRANSFORMER, True)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.recognised.dtypes == {"F16": found.parameters}
    assert found.size_bytes == saved.stat().st_size
    assert found.differences == Differences([], [], [])


def test_files_that_are_no_safetensors_say_what_they_are(tmp_path):
    path = tmp_path / "file.safetensors"
    torch.save({"a": torch.zeros(2)}, tmp_path / "zip.pth")
    cases = {
        "is empty": b"",
        "only 4 bytes": b"abcd",
        "a Python pickle": pickle.dumps({"a": list(range(50))}),
        "a zip archive": (tmp_path / "zip.pth").read_bytes(),
        "a GGUF file": b"GGUF" + bytes(60),
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "web page": b"<!DOCTYPE html><html>404</html>",
        f"claims {2**60} bytes": struct.pack("<Q", 2**60) + b"{" + bytes(100),
        "header is not JSON": struct.pack("<Q", 20) + b"{" + b"x" * 40,
        "not a JSON object": struct.pack("<Q", 20) + b"[1]".ljust(20) + bytes(8),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read_header(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_header(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "overlaps"),
        ({"a": entry(8, 16)}, "hole"),
        ({"a": entry(0, 2**62, (2**60,))}, "truncated"),
        ({"a": entry(0, 8)}, "tensors need 8 bytes, the file holds 16"),
        ({"a": entry(0, 16)}, "does not fill"),
        ({"a": entry(-8, 0)}, "does not fill"),
        ({"a": entry(16, 8)}, "does not fill"),
        ({"a": entry(0, 8, (-1, -2))}, "does not fill"),
        ({"a": entry(0, 8, (2,), "F9")}, "not readable"),
        ({"a": entry(0, 8, ("2",))}, "does not fill|not readable"),
        ({"a": {"dtype": "F32"}}, "not readable"),
        ({"a": 3}, "not readable"),
        ({"a": entry(0, 16, (4,)), "__metadata__": {"x": 1}}, "metadata"),
        ({"a": entry(0, 16, (4,)), "__metadata__": {"config": "{"}}, "config in its header is not JSON"),
        ({"a": entry(0, 16, (4,)), "__metadata__": {"config": "[]"}}, "not a JSON object"),
        ({"a\nb": entry(8, 16)}, r"'a\\nb' overlaps"),
        (b'{"a":' + b"[" * 100_000, "not JSON"),
    ],
)
def test_headers_that_do_not_fit_the_file_are_refused(tmp_path, header, message):
    path = raw(tmp_path / "bad.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 3000))
def test_damaged_files_raise_one_kind_of_error(tmp_path, position, value, cut):
    path = tmp_path / "damaged.safetensors"
    save_safetensors(path, {"a": torch.zeros(40), "b": torch.ones(3, 4)}, kind=VAE, config={"z": 16}, extra={})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content[: len(content) - (cut if cut < len(content) else 0)])
    for read in (load_tensors, describe):
        message = ""
        try:
            read(path)
        except CheckpointError as error:
            message = str(error)
        assert message.isprintable()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, {"a": torch.ones(2)}, kind=VAE, config={})
    asked = []

    def read(name):
        asked.append(name)
        if len(asked) > 3:  # a is written, b is not
            raise OSError("gone")
        return torch.zeros(4)

    with pytest.raises(OSError, match="gone"):
        save_safetensors(path, OnDemand(["a", "b"], read), kind=VAE, config={})
    assert asked == ["a", "b", "a", "b"]
    assert torch.equal(load_tensors(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_what_the_safetensors_library_writes(tmp_path):
    """But for the order of its metadata, which the library draws anew each time."""
    tensors = {"b": torch.rand(3, 2), "a": torch.rand(5).half(), "c": torch.tensor(7), "ä": torch.ones(2, 0)}
    save_safetensors(tmp_path / "ours.safetensors", tensors, kind=VAE, config={"x": "ü"}, extra={"record": "{}"})
    metadata = {"format": "pt", "kind": VAE, "config": '{"x": "\\u00fc"}', "record": "{}"}
    save_file(tensors, tmp_path / "library.safetensors", metadata)
    ours, library = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("ours", "library"))
    length = 8 + int.from_bytes(ours[:8], "little")
    assert ours[:8] == library[:8]
    assert ours[length:] == library[length:]
    assert json.loads(ours[8:length]) == json.loads(library[8:length])
    assert list(json.loads(ours[8:length])) == list(json.loads(library[8:length]))
    assert list(json.loads(ours[8:length])["__metadata__"]) == sorted(metadata)


def test_saving_refuses_reserved_names_and_missing_folders(tmp_path):
    with pytest.raises(CheckpointError, match="kind are reserved"):
        save_safetensors(tmp_path / "x.safetensors", {}, kind=VAE, config={}, extra={"kind": "other"})
    with pytest.raises(CheckpointError, match="is not a folder"):
        save_safetensors(tmp_path / "no" / "x.safetensors", {}, kind=VAE, config={})
