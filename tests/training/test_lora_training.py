"""LoRA training with the new layers in full: trainable parameters, exact resume, a file that restores the network."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from cached_world import build, settings_for, write_small_world
from pydantic import ValidationError
from safetensors.torch import load_file

from contextanyone_core import cli
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.lora import load_lora, merge_loras
from training.config import load_config
from training.export import main as export_main
from training.lora import NEW_PARTS, trained_lora
from training.patterns import matches
from training.planning.plan import plan_run
from training.settings import presets
from training.state import CheckpointStore
from training.train import main
from training.trainable import TrainSettings, choose_trained
from training.trainer import build_trainer

CONFIG = ContextAnyoneConfig.tiny()


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_folder):
    settings = settings_for(write_small_world(tmp_path_factory.mktemp("lora") / "world", 3), tiny_folder)
    assert build(settings)
    return settings


@pytest.fixture
def config(data, tiny_folder):
    def write(folder, **changes):
        folder.mkdir(exist_ok=True)
        part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "sample_steps": 1}
        part |= {"train": {"lora": {"rank": 2, "alpha": 6.0}}} | changes
        run = {"name": "lora", "out": str(folder / "run"), "steps": 4, "save_every": 2, "sample_every": 9, "workers": 0}
        optim = {"lr": 0.01, "warmup_steps": 0, "schedule": "constant"}
        init = {"from": str(tiny_folder / "transformer.safetensors")}
        path = folder / "c.yaml"
        path.write_text(json.dumps({"run": run | {"trackers": []}, "part": part, "init": init, "optim": optim}))
        return path

    return write


def velocity(model):
    config, generator = model.config, torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text = draw(1, config.text_len, config.text_dim)
    references = ReferenceInputs([draw(1, 16, 1, 4, 4)], text, [draw(1, 3, config.image_dim)])
    with torch.no_grad():
        return model(draw(1, 16, 2, 4, 4), torch.tensor([600.0]), text, references=references).velocity


def start(tiny_folder):
    return load_transformer(tiny_folder / "transformer.safetensors", dtype=torch.float32)


def test_the_updates_and_the_new_parts_train_and_nothing_else(config, tmp_path):
    trainer = build_trainer(load_config(config(tmp_path)), None)
    network = trainer.part.transformer
    for name in trainer.trained:
        assert ".lora_" in name or matches(name.removeprefix("transformer."), NEW_PARTS)
    assert not any(".emphasize_attn." in name and ".lora_" in name for name in trainer.trained)
    assert {name.split(".")[3] for name in trainer.trained if ".lora_" in name} == {"self_attn", "cross_attn", "ffn"}
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    step = next(step for step in range(9) if "reference" in trainer.step(trainer.part.batch(step)))
    for later in range(step + 1, step + 3):
        trainer.step(trainer.part.batch(later))
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert {f"transformer.{name}" for name in moved} == set(trainer.trained)


def test_it_starts_as_what_it_starts_from(config, tmp_path, tiny_folder):
    part = build_trainer(load_config(config(tmp_path)), None).part
    assert torch.equal(velocity(part.transformer), velocity(start(tiny_folder)))


def test_a_stopped_run_goes_on_bit_for_bit(config, tmp_path):
    found = []
    for name, starts in (("straight", [[]]), ("halves", [["run.steps=2"], ["run.workers=1"]])):
        path = config(tmp_path / name)
        for changes in starts:
            assert main(["--config", str(path), "--set", "run.threads=1", *changes]) == 0
        found.append(CheckpointStore(tmp_path / name / "run" / "checkpoints").load_latest())
    straight, halves = found
    assert straight.progress.step == halves.progress.step == 4
    for file, tensors in straight.tensors.items():
        assert [name for name, tensor in tensors.items() if not torch.equal(tensor, halves.tensors[file][name])] == []
    assert all(
        ".lora_" in name or matches(name, ("transformer." + p for p in NEW_PARTS)) for name in straight.tensors["ema"]
    )


def test_a_checkpoint_holds_what_is_trained_and_needs_the_same_start(config, tmp_path, tiny_folder, capsys):
    path, begin = config(tmp_path), tmp_path / "start.safetensors"
    begin.write_bytes((tiny_folder / "transformer.safetensors").read_bytes())
    assert main(["--config", str(path), "--set", f"init.from={begin}", "run.steps=2"]) == 0
    checkpoint = CheckpointStore(tmp_path / "run" / "checkpoints").load_latest()
    assert checkpoint.tensors["model"].keys() == checkpoint.tensors["ema"].keys()
    assert all(
        ".lora_" in name or matches(name, (f"transformer.{p}" for p in NEW_PARTS)) for name in checkpoint.tensors["ema"]
    )
    other = start(tiny_folder)
    with torch.no_grad():
        other.blocks[0].self_attn.q.weight[0, 0] += 1
    save_transformer(begin, other, dtype=torch.float32)
    capsys.readouterr()
    assert main(["--config", str(path), "--set", f"init.from={begin}"]) == 2
    assert export_main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("start.safetensors, whose content is not what the run started from") == 2
    assert CheckpointStore(tmp_path / "run" / "checkpoints").load_latest().progress.step == 2


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_exported_file_gives_the_trained_network(config, tmp_path, tiny_folder, recompute):
    path = config(tmp_path, recompute=recompute)
    assert main(["--config", str(path)]) == 0
    out = tmp_path / "out"
    assert export_main([str(tmp_path / "run"), "--out", str(out), "--dtype", "fp32"]) == 0
    trainer = build_trainer(load_config(path), CheckpointStore(tmp_path / "run" / "checkpoints").load_latest())
    with trainer.shown():
        trained = velocity(trainer.part.transformer)
    plain = start(tiny_folder)
    assert (trained - velocity(plain)).abs().max() > 1e-3
    lora = load_lora(out / "lora.safetensors", plain)
    assert lora.unknown == []
    assert lora.updates["blocks.1.ffn.2"].scale == 3.0
    merge_loras(plain, [(lora, 1.0)])
    torch.testing.assert_close(velocity(plain), trained, atol=1e-5, rtol=1e-5)
    whole = load_transformer(out / "transformer.safetensors", dtype=torch.float32)
    torch.testing.assert_close(velocity(whole), trained, atol=1e-5, rtol=1e-5)


def test_the_file_has_the_form_that_comfyui_reads(config, tmp_path):
    assert main(["--config", str(config(tmp_path)), "--set", "run.steps=2"]) == 0
    tensors = load_file(tmp_path / "run" / "export" / "lora.safetensors")
    assert all(
        (name.startswith("diffusion_model.") and tensor.dtype != torch.float32) or name.endswith(".alpha")
        for name, tensor in tensors.items()
    )
    assert tensors["diffusion_model.blocks.0.self_attn.q.lora_A.weight"].shape == (2, CONFIG.dim)
    assert tensors["diffusion_model.blocks.0.self_attn.q.lora_B.weight"].shape == (CONFIG.dim, 2)
    assert tensors["diffusion_model.blocks.0.self_attn.q.alpha"] == 6.0
    assert tensors["diffusion_model.blocks.0.emphasize_attn.q.diff"].shape == (CONFIG.dim, CONFIG.dim)
    assert tensors["diffusion_model.blocks.0.emphasize_attn.q.diff_b"].shape == (CONFIG.dim,)


def test_generate_runs_from_the_exported_folder_with_the_files_that_the_log_names(
    config, tmp_path, tiny_folder, caplog, monkeypatch
):
    caplog.set_level("INFO")
    assert main(["--config", str(config(tmp_path)), "--set", "run.steps=2"]) == 0
    export = tmp_path / "run" / "export"
    said = next(line for line in caplog.messages if line.startswith(f"contextanyone generate --weights {export}"))
    assert said.endswith(f"from {tiny_folder}.")
    files = re.findall(r"\w+\.safetensors", said)
    assert files == ["vae.safetensors", "text_encoder.safetensors", "image_encoder.safetensors"]
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--weights", str(export), "--frames", "1", "--size", "32x32", "--steps", "1"]
    assert cli.main([*words, "--first", "A woman.", "--out", "a.webp"]) == 2
    for name in files:
        shutil.copy(tiny_folder / name, export)
    assert cli.main([*words, "--first", "A woman.", "--out", "a.webp"]) == 0


def test_of_the_weights_or_their_average(config, tmp_path, capsys):
    path = config(tmp_path)
    assert main(["--config", str(path)]) == 0
    for name, choice in (("ema", "--ema"), ("now", "--no-ema")):
        assert export_main([str(tmp_path / "run"), "--out", str(tmp_path / name), "--dtype", "fp32", choice]) == 0
    checkpoint = CheckpointStore(tmp_path / "run" / "checkpoints").load_latest()
    key = "blocks.0.self_attn.q.lora_A"
    for name, file in (("ema", "ema"), ("now", "model")):
        exported = load_file(tmp_path / name / "lora.safetensors")[f"diffusion_model.{key}.weight"]
        assert torch.equal(exported, checkpoint.tensors[file][f"transformer.{key}.default.weight"])
    assert json.loads((tmp_path / "now" / "record.json").read_text())["ema"] is False
    with pytest.raises(SystemExit):
        export_main([str(tmp_path / "run"), "--out", str(tmp_path / "no"), "--dtype", "fp8"])
    assert "invalid choice: 'fp8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"targets": ["blocks.*.self_atn.*"]},
            r"lora.targets has the pattern .*self_atn.*, which matches no linear layer",
        ),
        ({"full": ["*.nothing.*"]}, r"lora.full has the pattern \*.nothing.\*, which matches no parameter"),
        ({"targets": ["*.emphasize_attn.*"]}, "targets names only layers that part.train.lora.full trains in full"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(lora, message):
    with pytest.raises(InputError, match=message):
        choose_trained(ContextAnyoneTransformer(CONFIG), TrainSettings(lora=lora))


def test_a_lora_alone_has_no_full_parts():
    network = ContextAnyoneTransformer(CONFIG)
    choose_trained(network, TrainSettings(lora={"full": [], "targets": ["blocks.0.*"]}))
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert all(name.startswith("blocks.0.") and ".lora_" in name for name in trained)
    assert any(".emphasize_attn." in name for name in trained)


def test_biases_of_adapted_layers_can_be_trained_in_full():
    """peft moves them into the layer that it wraps; a file has them under the names that they have without it."""
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(CONFIG)
    start = copy.deepcopy(network)
    settings = TrainSettings(lora={"rank": 2, "full": ["*.bias"]})
    choose_trained(network, settings)
    named = dict(network.named_parameters())
    biases = [name for name in named if name.endswith(".bias")]
    assert "blocks.0.self_attn.q.base_layer.bias" in biases
    assert all(named[name].requires_grad for name in biases)
    with torch.no_grad():
        for name in biases:
            named[name].add_(1.0)
    merge_loras(start, [(trained_lora(network.state_dict(), settings.lora, start.state_dict()), 1.0)])
    for name in biases:
        torch.testing.assert_close(start.get_parameter(name.replace(".base_layer.", ".")), named[name])


def test_what_does_not_go_with_a_lora_is_refused(config, tmp_path, capsys):
    with pytest.raises(ValidationError, match=r"leave out part\.train\.only and freeze"):
        TrainSettings(lora={}, freeze=["head.*"])
    path = str(config(tmp_path))
    assert main(["--config", path, "--set", "init.from=null"]) == 2
    assert "part.train.lora needs init.from" in capsys.readouterr().err
    assert main(["--config", path, "--set", "part.train.lora.rnak=3"]) == 2
    assert "part.train.lora.rnak is not a setting. Did you mean part.train.lora.rank?" in capsys.readouterr().err


def test_the_preset_fits_its_cards(tmp_path, monkeypatch):
    """With the settings that its head has for smaller ones."""
    path = next(path for path in presets() if path.stem == "lora_1.3b")
    head = " ".join(line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#"))
    settings = {
        "24": [],
        **{size: found.split() for size, found in re.findall(r"(\d+) GB: +--set ((?:\S+=\S+ *)+)", head)},
    }
    assert settings.keys() == {"24", "16", "12"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.planning.plan.RECOMPUTE", ("full",))
    for size, changes in settings.items():
        plan = plan_run(load_config(path, changes))
        assert 0.4e9 < plan.cost.ema / 4 < 0.5e9
        assert plan.parameters > 1.8e9
        assert plan.cost.peak < (int(size) - 1.5) * 1e9, size  # what a GPU needs beside tensors
