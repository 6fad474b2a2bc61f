"""What small cards need: a frozen base in 8 bits, blocks in host memory, moments in 8 bits; and what each changes."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from cached_world import build, settings_for, write_small_world
from pydantic import ValidationError
from torch import Tensor, nn

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.vae import VideoVAE
from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training import block_offload
from training.adam8bit import adamw_8bit, state_bytes
from training.cache import build_cache
from training.config import OptimSettings, load_config
from training.data.buckets import Bucket
from training.data.encode import Prepared, encode_prepared
from training.data.settings import DataSettings
from training.data.work import Stopped
from training.distributed import World
from training.parts import manifest
from training.planning.trace import StepShape, run_step
from training.quantised import QuantisedLinear, quantise
from training.state import CheckpointStore
from training.train import main
from training.trainer import build_trainer

SMALL = ["part.train.lora.base=int8", "part.train.lora.offload=true", "optim.optimizer=adamw8bit"]
TINY = ContextAnyoneConfig.tiny()
RANK = 64  # at this width only an update of such a rank has moments in 8 bits


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_folder):
    settings = settings_for(write_small_world(tmp_path_factory.mktemp("small") / "world", 3), tiny_folder)
    assert build(settings)
    return settings


@pytest.fixture
def config(data, tiny_folder):
    def write(folder, **changes):
        folder.mkdir(exist_ok=True)
        part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "sample_steps": 1, "recompute": "full"}
        part |= {"train": {"lora": {"rank": RANK}}}
        run = {"name": "small", "out": str(folder / "run"), "steps": 4, "save_every": 2, "workers": 0, "threads": 1}
        optim = {"lr": 0.003, "warmup_steps": 0, "schedule": "constant"} | changes
        init = {"from": str(tiny_folder / "transformer.safetensors")}
        path = folder / "c.yaml"
        path.write_text(json.dumps({"run": run | {"trackers": []}, "part": part, "init": init, "optim": optim}))
        return path

    return write


@pytest.fixture
def torchao():
    """The library's own update, not compiled: at this size that takes longer than everything else."""
    pytest.importorskip("torchao")
    with torch.compiler.set_stance("force_eager"):
        yield


def losses(path, settings, steps):
    trainer = build_trainer(load_config(path, settings), None)
    return [trainer.step(trainer.part.batch(step))["loss"] for step in range(steps)]


@pytest.mark.parametrize(("storage", "error"), [("int8", 0.012), ("fp8", 0.04)])
def test_a_stored_layer_is_the_layer_of_the_rounded_matrix(storage, error):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    layer.requires_grad_(False)
    with torch.no_grad():
        layer.weight[3] = 0  # a row without anything
        layer.weight[5] *= 1000
    stored = QuantisedLinear(layer, storage)
    values, scale = quantise(layer.weight, storage)
    plain = values.float() if storage == "int8" else values.view(torch.float8_e4m3fn).float()
    rounded = plain * scale.float()[:, None]
    for row, exact in zip(rounded, layer.weight, strict=True):
        assert (row - exact).norm() <= error * exact.norm()
    x, again = (torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.dtype) or tensor, lambda t: t):
        found = stored(x)
    expected = nn.functional.linear(again, rounded, layer.bias)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, again.grad, atol=1e-3, rtol=1e-4)
    assert torch.float32 not in kept, "nothing in float32 is kept for the backward pass"
    with torch.autocast("cpu", torch.bfloat16):
        low = stored(x)
    assert low.dtype == torch.bfloat16
    assert (low - expected).norm() < 0.01 * expected.norm()


def test_only_what_is_not_trained_is_stored_in_8_bits(config, tmp_path):
    trainer = build_trainer(load_config(config(tmp_path), ["part.train.lora.base=int8"]), None)
    network = trainer.part.transformer
    frozen = [n for n, m in network.blocks.named_modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    assert frozen == []
    stored = [name for name, module in network.named_modules() if isinstance(module, QuantisedLinear)]
    assert "blocks.1.ffn.2.base_layer" in stored
    assert not any("emphasize_attn" in name or not name.startswith("blocks.") for name in stored)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.trained.values())


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_blocks_in_host_memory_change_no_bit(config, tmp_path, recompute):
    path, same = config(tmp_path), [f"part.recompute={recompute}"]
    away = [*same, "part.train.lora.offload=true"]
    assert losses(path, away, 4) == losses(path, same, 4)


def test_a_resume_may_change_what_costs_memory_alone(config, tmp_path):
    ways = (["part.recompute=none"], ["part.recompute=selective"])
    ways += (["part.recompute=full", "part.train.lora.offload=true"],)
    found = {}
    for name, starts in (("straight", [(3, ways[0])]), ("changed", list(enumerate(ways, 1)))):
        path = config(tmp_path / name)
        for steps, way in starts:
            assert main(["--config", str(path), "--set", *way, f"run.steps={steps}"]) == 0
        found[name] = CheckpointStore(tmp_path / name / "run" / "checkpoints").load_latest()
    for file, tensors in found["straight"].tensors.items():
        others = found["changed"].tensors[file]
        assert tensors.keys() == others.keys()
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


def test_no_more_than_three_blocks_are_on_the_device(config, tmp_path, monkeypatch):
    path = config(tmp_path)
    trainer = build_trainer(load_config(path, ["part.train.lora.offload=true"]), None)
    network, offload = trainer.part.transformer, trainer.part.offload
    names = [n for n, p in network.blocks.named_parameters() if not p.requires_grad and p.ndim == 2]
    assert names == [], "between the steps none is"
    alive, most, copies = {}, 0, []
    copy = block_offload.BlockOffload._copy

    def watched(self, index, device):
        nonlocal most
        made = copy(self, index, device)
        copies.append(index)
        for tensor in made:
            storage = tensor.untyped_storage()
            alive[id(tensor)] = index
            weakref.finalize(tensor, alive.pop, id(tensor), None)
            assert storage.nbytes() > 0
        gc.collect()
        most = max(most, len(set(alive.values())))
        return made

    monkeypatch.setattr(block_offload.BlockOffload, "_copy", watched)
    for step in range(3):
        trainer.step(trainer.part.batch(step))
    assert most <= 3
    count = len(offload._places)
    assert len(copies) <= 3 * 2 * count
    with trainer.shown():
        first = network.blocks[0].self_attn.q.base_layer
        assert first.weight is None


def test_the_losses_are_those_of_float32_within_2_percent(config, tmp_path, torchao):
    path = config(tmp_path)
    exact, small = losses(path, [], 24), losses(path, SMALL, 24)
    assert exact != small
    assert max(abs(a - b) / a for a, b in zip(exact, small, strict=True)) < 0.02


def test_a_stopped_run_goes_on_bit_for_bit_and_is_exported(config, tmp_path, torchao):
    found = []
    for name, starts in (("straight", [[]]), ("halves", [["run.steps=2"], []])):
        path = config(tmp_path / name)
        for changes in starts:
            assert main(["--config", str(path), "--set", *SMALL, *changes]) == 0
        found.append(CheckpointStore(tmp_path / name / "run" / "checkpoints").load_latest())
    straight, halves = found
    assert straight.progress.step == halves.progress.step == 4
    for file, tensors in straight.tensors.items():
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor, halves.tensors[file][name])] == []
    assert any(name.endswith("/exp_avg.codes") for name in straight.tensors["optimizer"])
    assert not any(name.endswith((".scale", ".base_layer.weight")) for name in straight.tensors["model"])
    assert (tmp_path / "halves/run/export/transformer.safetensors").is_file()


def test_the_state_in_8_bits_has_the_planned_size(torchao):
    parameters = [nn.Parameter(torch.randn(*shape)) for shape in ((64, 64), (63, 65), (10,), (128, 256))]
    optimizer = adamw_8bit([{"params": parameters}], lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    def size(value: Tensor) -> int:
        parts = [getattr(value, piece) for piece in ("codes", "scale", "qmap")] if hasattr(value, "codes") else [value]
        return sum(part.nbytes for part in parts)

    for parameter in parameters:
        assert sum(size(value) for value in optimizer.state[parameter].values()) == state_bytes(parameter)


def test_without_the_library_one_line_says_what_to_install(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    assert main(["--config", str(config(tmp_path)), "--set", "optim.optimizer=adamw8bit"]) == 2
    assert capsys.readouterr().err.count("adamw8bit needs torchao, which is not installed: pip install torchao") == 1


@pytest.mark.parametrize("setting", SMALL)
def test_a_network_that_is_shared_out_has_none_of_it(config, tmp_path, setting):
    chosen = load_config(config(tmp_path), [setting])
    with pytest.raises(InputError, match=r"which needs whole matrices: FSDP holds shares of them"):
        build_trainer(chosen, None, World(0, 2, torch.device("cpu"), sharded=True))


def test_clips_that_do_not_fit_together_are_encoded_one_by_one_with_all_memory_free():
    held = []

    class Vae:
        def encode(self, images):
            if len(images) > 1:
                features = torch.zeros(1)
                held.append(weakref.ref(features))
                raise torch.OutOfMemoryError
            assert held[-1]() is None, "what the first attempt held is still there"
            return torch.full((1, 16, 1, 1, 1), float(images.mean()))

    batch = [Prepared(torch.full((1, 3, 1, 8, 8), float(number)), {}) for number in range(2)]
    entries = encode_prepared(batch, SimpleNamespace(vae=Vae(), image=None))
    assert [float(entry["latents"].mean()) for entry in entries] == [0, 1]


def test_each_process_of_the_cache_has_its_card_as_the_current_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen, given = [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")

    def builder(_, device, __):
        given.append(device)
        raise Stopped

    monkeypatch.setattr("training.data.build.CacheBuilder", builder)
    assert build_cache(DataSettings(manifest=tmp_path / "none.jsonl")) is None
    assert chosen == given == [torch.device("cuda", 3)]


def test_samples_are_decoded_in_tiles_beside_the_training(config, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(manifest, "VideoVAE", lambda vae, **options: made.append(VideoVAE(vae, **options)) or made[-1])
    build_trainer(load_config(config(tmp_path)), None).sample(tmp_path)
    assert [vae.tiled for vae in made] == [True]


def test_blocks_in_host_memory_need_recomputation():
    given = {"data": DataSettings(manifest="none.jsonl"), "train": {"lora": {"offload": True}}}
    for changes in ({}, {"recompute": "selective", "compile": True}):
        with pytest.raises(ValidationError, match=r"offload needs part\.recompute: full, or selective without"):
            manifest.Settings(**given, **changes)


def test_the_plan_has_less_memory_by_what_is_stored_otherwise():
    shape, given = (
        StepShape(Bucket(1, 32, 32), 1, 5),
        {"data": DataSettings(manifest="none.jsonl"), "recompute": "full"},
    )

    def planned(optimizer="adamw", **lora):
        settings = manifest.Settings(**given, train={"lora": {"rank": RANK} | lora})
        return run_step(TINY, settings, shape, OptimSettings(optimizer=optimizer), bf16=True)

    plain, int8, away, small = planned(), planned(base="int8"), planned(offload=True), planned("adamw8bit")
    network = ContextAnyoneTransformer(TINY, device="meta")
    layers = [m for n, m in network.blocks.named_modules() if isinstance(m, nn.Linear) and "emphasize" not in n]
    layers = [m for m in layers if not any(m is o for n, o in network.blocks.named_modules() if n.endswith("_img"))]
    count, rows = (sum(f(layer) for layer in layers) for f in (lambda m: m.weight.numel(), lambda m: m.out_features))
    assert plain.weights - int8.weights == 3 * count - 2 * rows
    assert plain.weights - away.weights == 4 * count
    assert (plain.host, int8.host) == (0, 0)
    assert away.host == sum(1 << (4 * layer.weight.numel() - 1).bit_length() for layer in layers) >= 4 * count
    assert small.optimizer < plain.optimizer
    assert (plain.ema, plain.forward_flops) == (int8.ema, int8.forward_flops) == (away.ema, away.forward_flops)
