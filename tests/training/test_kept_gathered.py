"""FSDP2 on two processes: what is left gathered by a pass without a backward pass never enters a later one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_part
import torch
from processes import in_each, make_config
from safetensors.torch import load_file
from torch import Tensor

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import save_transformer
from training.config import TrainConfig
from training.lora import without_lora
from training.parts.base import Metrics
from training.parts.objective import Draws, EncodedClips, prior_step
from training.trainer import Trainer, build_trainer

KEEPS = pytest.mark.parametrize("reshards", ["true", "false"])


def _held_out(part: tiny_part.TinyPart) -> Iterator[Any]:
    yield part.batch(100)


def _validation_loss(part: tiny_part.TinyPart, batch: Any, sigma: float, generator: torch.Generator) -> Metrics:
    losses, _ = part.loss(batch, 0, generator)
    return {"video": losses}


def _trained(trainer: Trainer) -> Trainer:
    """The trainer after a step, with an average that is far from its weights."""
    trainer.step(trainer.part.batch(0))
    for tensor in trainer.ema.tensors.values():
        tensor.mul_(1.5)
    return trainer


def _sampled(trainer: Trainer, folder: Path) -> Tensor:
    own = folder / str(trainer.world.rank)
    return load_file(trainer.sample(own) / "sample.safetensors")["velocity"]


def _mixed(trainer: Trainer) -> list[float]:
    """Differences of a sample after a validation from one alone, and of the steps after both from a step alone."""
    config, world, folder = trainer.config, trainer.world, trainer.config.run.folder
    after, sampled, alone = (_trained(build_trainer(config, None, world)) for _ in range(3))
    after.validate()
    samples = [_sampled(each, folder / name) for name, each in (("after", after), ("sampled", sampled))]
    found = [(samples[0] - samples[1]).abs().max().item()]
    losses = [each.step(each.part.batch(1))["loss"] for each in (after, sampled, alone)]
    return found + [abs(loss - losses[2]) for loss in losses]


@KEEPS
def test_validation_samples_and_steps_each_have_their_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reshards: str
) -> None:
    monkeypatch.setattr(tiny_part.TinyPart, "validation_batches", _held_out, raising=False)
    monkeypatch.setattr(tiny_part.TinyPart, "validation_loss", _validation_loss)
    config = make_config(tmp_path, {"name": "tiny"}, lr=1e-2, schedule="constant")
    assert in_each(_mixed, config, ACCELERATE_USE_FSDP="true", FSDP_RESHARD_AFTER_FORWARD=reshards) == [0.0] * 4


def _lora_config(folder: Path) -> TrainConfig:
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_transformer(folder / "start.safetensors", network, dtype=torch.float32)
    part = {"name": "tiny", "train": {"lora": {"rank": 2, "full": []}}}
    config = make_config(folder / "run", part, lr=1e-2, schedule="constant")
    return config.model_copy(update={"init": config.init.model_copy(update={"from_": folder / "start.safetensors"})})


def _prior_first(part: tiny_part.TinyPart, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """The prior in every other step, the first among them."""
    if step % 2:
        return _LOSS(part, batch, step, generator)
    latents, still = batch["latents"], batch["reference_latents"]
    clips = EncodedClips(latents, torch.ones(1, 1, 3, 4, 6), still, None, latents[:, :, :1], None)
    draws = Draws(torch.full((1,), 0.5), torch.randn(latents.shape, generator=generator), [True], None)
    return prior_step(part.transformer, clips, draws, torch.ones(1, 12, 32))


_LOSS = tiny_part.TinyPart.loss


def _norms(trainer: Trainer) -> list[float]:
    return [trainer.step(trainer.part.batch(step))["grad_norm"] for step in range(4)]


@KEEPS
def test_a_step_of_the_prior_leaves_the_lora_its_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reshards: str
) -> None:
    monkeypatch.setattr(tiny_part.TinyPart, "loss", _prior_first)
    config = _lora_config(tmp_path)
    norms = in_each(_norms, config, ACCELERATE_USE_FSDP="true", FSDP_RESHARD_AFTER_FORWARD=reshards)
    assert norms[0] == 0.0  # the LoRA changes nothing yet
    assert norms == pytest.approx(in_each(_norms, config), rel=1e-4)  # two whole networks
    assert min(norms[1:]) > 0


def test_without_its_lora_a_network_trains_what_it_trained(tmp_path: Path) -> None:
    config = _lora_config(tmp_path)
    network = build_trainer(config, None).part.modules()["transformer"]
    trained = [parameter.requires_grad for parameter in network.parameters()]
    with without_lora(network):
        assert [parameter.requires_grad for parameter in network.parameters()] == trained
    assert [parameter.requires_grad for parameter in network.parameters()] == trained
    assert 0 < sum(trained) < len(trained)
