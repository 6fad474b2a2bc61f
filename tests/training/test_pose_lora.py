"""A widened Wan T2V as a LoRA file: exact at its rank, refused where it cannot hold the run, by the command."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from cached_world import build, settings_for, write_small_world
from safetensors import safe_open
from safetensors.torch import load_file

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.lora import PATCHES, load_lora, merge_loras, save_lora
from training.config import load_config
from training.export import main as export_main
from training.lora import NEW_PARTS
from training.pose_lora import _LACKING, pose_lora
from training.state import CheckpointStore
from training.train import main
from training.trainable import TrainSettings, choose_trained
from training.trainer import build_trainer

CONFIG = ContextAnyoneConfig.tiny()
LORA = {"rank": 2, "alpha": 6.0, "full": [*NEW_PARTS, "patch_embedding.*", "head.head.*"]}


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def velocity(model, *, pose=True):
    condition = VideoCondition(draw(1, 16, 2, 4, 4, seed=6), draw(1, 16, 1, 4, 4, seed=7)) if pose else None
    text = draw(1, model.config.text_len, model.config.text_dim, seed=3)
    with torch.no_grad():
        return model(draw(1, 16, 2, 4, 4), torch.tensor([600.0]), text, condition=condition).velocity


def random_network(config=CONFIG):
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def stock_of(network):
    """Wan T2V as it was before it was widened and got this project's parts."""
    stock = ContextAnyoneTransformer(replace(network.config, emphasize=False, image_dim=None, condition_dim=0))
    state = network.state_dict()
    state[PATCHES] = state[PATCHES][:, :16]
    stock.load_state_dict({name: state[name] for name in stock.state_dict()})
    return stock.eval()


@pytest.fixture
def start():
    """As `contextanyone init --condition` makes it: condition channels that are zero."""
    network = random_network()
    network.add_condition_channels()
    return network


def trained_from(start, settings, patches=slice(None)):
    """The network after some training: all that is trained has moved, of the patch embedding's inputs some."""
    network = copy.deepcopy(start)
    choose_trained(network, settings)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(network.named_parameters()):
            change = 0.05 * draw(*parameter.shape, seed=index)
            if name == PATCHES:
                parameter[:, patches] += change[:, patches]
            elif parameter.requires_grad:
                parameter += change
    return network


@pytest.mark.parametrize(("patches", "rank"), [(slice(None), 192), (slice(16, None), 128)])
def test_stock_wan_with_the_file_is_the_trained_network(start, tmp_path, patches, rank):
    settings = TrainSettings(lora=LORA)
    network, stock = trained_from(start, settings, patches), stock_of(start)
    lora, left_out = pose_lora(network, settings, start)
    assert left_out == ["Emphasize-Attention", "the CLIP branch"]
    save_lora(tmp_path / "pose.safetensors", lora, dtype=torch.float32)
    stored = load_file(tmp_path / "pose.safetensors")
    assert stored["diffusion_model.patch_embedding.lora_A.weight"].shape == (rank, 48, 1, 2, 2)
    assert stored["diffusion_model.patch_embedding.alpha"] == rank
    assert {"diffusion_model.head.head.diff", "diffusion_model.patch_embedding.diff_b"} <= stored.keys()
    assert not any(word in key for key in stored for word in ("emphasize", "img"))
    plain = velocity(stock, pose=False)
    read = load_lora(tmp_path / "pose.safetensors", stock)
    assert read.unknown == []
    merge_loras(stock, [(read, 1.0)])
    assert torch.equal(stock.patch_embedding.weight[:, 16:], network.get_parameter(PATCHES)[:, 16:])
    for pose in (True, False):
        torch.testing.assert_close(velocity(stock, pose=pose), velocity(network, pose=pose), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(velocity(stock), velocity(stock, pose=False), atol=1e-2)
    assert not torch.allclose(velocity(stock, pose=False), plain, atol=1e-2)


def test_a_run_that_trained_the_patch_embedding_alone(start):
    settings = TrainSettings(only=["patch_embedding.*"])
    network, stock = trained_from(start, settings), stock_of(start)
    lora, left_out = pose_lora(network, settings, start)
    assert (left_out, list(lora.updates), list(lora.differences)) == ([], ["patch_embedding"], ["patch_embedding.bias"])
    merge_loras(stock, [(lora, 1.0)])
    torch.testing.assert_close(velocity(stock), velocity(network), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"trained \d+ tensors of the blocks in full, such as blocks\.0\."),
        ({"lora": LORA | {"full": ["patch_embedding.*", "blocks.1.norm3.*"]}}, "2 tensors.*such as blocks.1.norm3"),
        ({"lora": LORA | {"full": ["head.*"]}}, r"still zero.*train patch_embedding\.weight"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(start, settings, message):
    settings = TrainSettings(**settings)
    with pytest.raises(InputError, match=message):
        pose_lora(trained_from(start, settings), settings, start)


def test_a_start_that_need_not_be_wan_is_refused(start):
    settings = TrainSettings(lora=LORA)
    network = trained_from(start, settings)
    with pytest.raises(InputError, match=r"trained condition channels.*contextanyone init --condition"):
        pose_lora(network, settings, trained_from(start, settings))
    narrow = random_network()
    with pytest.raises(InputError, match="no condition channels"):
        pose_lora(trained_from(narrow, TrainSettings(lora=LORA)), settings, narrow)


def test_the_parts_that_are_left_out_are_those_that_a_lora_trains_in_full():
    assert {pattern for patterns in _LACKING.values() for pattern in patterns} == set(NEW_PARTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_folder):
    settings = settings_for(write_small_world(tmp_path_factory.mktemp("pose-lora") / "world", 3), tiny_folder)
    assert build(settings)
    return settings


def config_of(folder, data, tiny_folder, **train):
    """A run's configuration that starts from the tiny network, widened."""
    network = load_transformer(tiny_folder / "transformer.safetensors", dtype=torch.float32)
    network.add_condition_channels()
    save_transformer(folder / "wide.safetensors", network, dtype=torch.float32)
    run = {"name": "pose", "out": str(folder / "run"), "steps": 2, "save_every": 2, "sample_every": 9, "workers": 0}
    part = {"name": "manifest", "data": json.loads(data.model_dump_json()), "sample_steps": 1, "train": train}
    init, optim = {"from": str(folder / "wide.safetensors")}, {"lr": 0.01, "warmup_steps": 0}
    path = folder / "c.yaml"
    path.write_text(json.dumps({"run": run | {"trackers": []}, "part": part, "init": init, "optim": optim}))
    return path


def test_the_command_writes_the_average_and_names_what_it_leaves_out(data, tiny_folder, tmp_path, capsys, caplog):
    path = config_of(tmp_path, data, tiny_folder, lora=LORA)
    assert main(["--config", str(path)]) == 0
    run, out = tmp_path / "run", tmp_path / "out"
    store = CheckpointStore(run / "checkpoints")
    checkpoint = store.load_latest()
    for index, kind in enumerate(("model", "ema")):  # as poses would train them
        channels = checkpoint.tensors[kind][f"transformer.{PATCHES}"][:, 16:]
        channels += 0.1 * draw(*channels.shape, seed=index)
    store.save(checkpoint.progress, checkpoint.tensors)
    capsys.readouterr()
    for choice in ("--ema", "--no-ema"):
        assert export_main([str(run), "--out", str(out), "--pose-lora", "--dtype", "fp32", choice]) == 0
        assert capsys.readouterr().out == f"{out / 'pose_lora.safetensors'}: step 2\n"
        assert "stock Wan lacks: Emphasize-Attention and the CLIP branch" in caplog.text
        caplog.clear()
        assert [file.name for file in out.iterdir()] == ["pose_lora.safetensors"]
        with safe_open(out / "pose_lora.safetensors", "pt") as file:
            header = file.metadata()
        assert (header["kind"], json.loads(header["record"])["steps"]) == ("LoRA", 2)
        stock = stock_of(load_transformer(tmp_path / "wide.safetensors", dtype=torch.float32))
        merge_loras(stock, [(load_lora(out / "pose_lora.safetensors", stock), 1.0)])
        trainer = build_trainer(load_config(path), store.load_latest())
        with trainer.shown(ema=choice == "--ema"):
            torch.testing.assert_close(velocity(stock), velocity(trainer.part.transformer), atol=1e-5, rtol=1e-5)


def test_the_command_refuses_in_one_line(data, tiny_folder, tmp_path, capsys):
    assert main(["--config", str(config_of(tmp_path, data, tiny_folder))]) == 0
    capsys.readouterr()
    assert export_main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--pose-lora"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("export.py: --pose-lora: the ")
    assert list((tmp_path / "out").iterdir()) == []
