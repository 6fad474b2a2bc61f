"""1,000 files damaged at random: one kind of error, no code run, no memory beyond what the file has bytes for."""

import codecs
import json
import random
import struct
import sys
import tracemalloc
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import CheckpointError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import describe, load_transformer
from contextanyone_core.weights.lora import load_lora, merge_loras
from contextanyone_core.weights.recognition import recognise
from contextanyone_core.weights.source import open_source

ROUNDS = 250  # for each of four forms
LARGE = (2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, 0)


@pytest.fixture(scope="module")
def state():
    """A miniature of Wan's file, small enough that damage hits the header."""
    torch.manual_seed(0)
    names = ("head.modulation", "blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight", "patch_embedding.bias")
    return {name: torch.randn(2, 32) for name in names}


@pytest.fixture(scope="module", params=["safetensors", "pth", "gguf", "index"])
def sound(request, state, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / f"sound.{request.param}"
    if request.param == "safetensors":
        note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        save_file(state | {"blocks.0.ffn.0.comfy_quant": note}, path, {"config": "{}", "kind": "wan-transformer"})
    elif request.param == "pth":
        torch.save({"state_dict": state, "step": 3}, path)
    elif request.param == "gguf":
        writer = gguf.GGUFWriter(path, "wan")
        writer.add_array("list", ["a", "bb"])
        for name, tensor in state.items():
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q8_0), raw_dtype=8)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        save_file(state, folder / "one.safetensors")
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": dict.fromkeys(state, "one.safetensors")}))
    recognise(path)
    return path


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The file with a few bytes, numbers or pieces changed, most of them in the first and last kilobyte."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start = chance.choice((0, max(len(data) - 1200, 0)))
        place = min(start + chance.randrange(1200), len(data) - 1)
        match chance.randrange(6):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                data[place] ^= 1 << chance.randrange(8)
            case 2:
                data[place : place + 8] = struct.pack("<Q", chance.choice(LARGE))
            case 3:
                data[place : place + 4] = struct.pack("<I", chance.choice(LARGE) % 2**32)
            case 4:
                del data[place : place + chance.randrange(1, 40)]
            case _:
                data[place:place] = data[max(place - 20, 0) : place]
        if len(data) < 2:
            break
    return bytes(data)


def read_all(path: Path) -> None:
    """Everything that a command may do with a file."""
    source = open_source(path)
    for name in source.tensors:
        source.read(name)
    describe(path)
    load_transformer(path, plain=True)


def test_damage_is_told_in_one_line(sound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = sound.read_bytes()
    file = sound.with_name(f"damaged{sound.name.removeprefix('sound')}")
    if sound.name.endswith(".json"):
        file = sound.with_name("damaged.safetensors.index.json")
    asked: list[object] = []
    codecs.lookup("cp437")  # zip's own, which Python imports when it is first needed
    sys.addaudithook(lambda event, given: asked.append(given[0]) if event in EVENTS and listening else None)
    refused, messages = 0, []
    for seed in range(ROUNDS):
        file.write_bytes(damaged(content, random.Random(seed)))
        listening.append(True)
        tracemalloc.start()
        try:
            read_all(file)
        except CheckpointError as error:
            refused += 1
            messages.append(str(error))
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            listening.clear()
        assert peak < 4_000_000, f"seed {seed} took {peak} bytes"
    assert refused > ROUNDS // 2
    assert not [message for message in messages if "\n" in message]
    assert not asked, asked[:3]
    assert list(tmp_path.iterdir()) == []


def test_damage_of_a_lora_is_told_in_one_line(tmp_path):
    torch.manual_seed(0)
    model = ContextAnyoneTransformer(ContextAnyoneConfig.tiny()).requires_grad_(False)
    stem, path = "diffusion_model.blocks.0.self_attn", tmp_path / "lora.safetensors"
    tensors = {f"{stem}.q.lora_A.weight": torch.randn(2, 48), f"{stem}.q.lora_B.weight": torch.randn(48, 2)}
    tensors |= {f"{stem}.q.dora_scale": torch.ones(48, 1), f"{stem}.q.alpha": torch.tensor(1.0)}
    tensors |= {f"{stem}.k.lokr_w1": torch.randn(4, 6), f"{stem}.k.lokr_w2": torch.randn(12, 8)}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 4})})
    content, messages = path.read_bytes(), []
    for seed in range(ROUNDS):
        path.write_bytes(damaged(content, random.Random(seed)))
        try:
            merge_loras(model, [(load_lora(path, model), 0.0)])
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > ROUNDS // 2
    assert not [message for message in messages if "\n" in message]


listening: list[bool] = []
EVENTS = ("exec", "os.system", "subprocess.Popen", "pickle.find_class", "socket.connect")


@pytest.mark.parametrize("seed", range(6))
def test_the_command_ends_with_two(sound, tmp_path, seed, capsys):
    content = sound.read_bytes()
    path = sound.with_name(f"cut{sound.suffix if sound.suffix != '.json' else '.safetensors.index.json'}")
    path.write_bytes(content[: len(content) * seed // 7])
    for words in (["inspect", path], ["convert", path, "--out", tmp_path / "o.safetensors"]):
        assert cli.main([str(word) for word in words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
