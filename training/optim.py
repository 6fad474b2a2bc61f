"""The optimizer of a part, the learning rate over the steps, and the optimizer's state as plain tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from contextanyone_core.errors import CheckpointError
from training.adam8bit import adamw_8bit, joined, pieces
from training.config import OptimSettings
from training.distributed import stored_like
from training.muon import MuonAdamW
from training.parts.base import ParameterGroup


def make_optimizer(groups: list[ParameterGroup], settings: OptimSettings) -> torch.optim.Optimizer:
    """Return the optimizer over the groups. Each keeps its `lr_scale`, read by `set_learning_rate`.

    `optimizer: muon` takes Muon for the groups that ask for it, and AdamW for the others.

    Raises:
        MissingDependencyError: `adamw8bit` without torchao.
    """
    given = [
        {
            "params": group["params"],
            "lr_scale": group.get("lr_scale", 1.0),
            "weight_decay": group.get("weight_decay", settings.weight_decay),
            "muon": group.get("muon", False),
        }
        for group in groups
    ]
    if settings.optimizer == "adamw8bit":
        return adamw_8bit(given, lr=settings.lr, betas=settings.betas)
    optimizer = MuonAdamW if settings.optimizer == "muon" else torch.optim.AdamW
    return optimizer(given, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(settings: OptimSettings, step: int, steps: int) -> float:
    """Return the rate of a step (from 0): linear warm-up, then the schedule, down to final_lr_fraction at the end.

    Of `lr_factors` the one of the latest step that is reached multiplies it.
    """
    reached = [at for at in settings.lr_factors if at <= step]
    return _scheduled(settings, step, steps) * (settings.lr_factors[max(reached)] if reached else 1.0)


def _scheduled(settings: OptimSettings, step: int, steps: int) -> float:
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps))
    left = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[settings.schedule]
    return settings.lr * (settings.final_lr_fraction + (1.0 - settings.final_lr_fraction) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate times its own lr_scale."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # of a compiled update
            group["lr"].fill_(rate * group["lr_scale"])
        else:
            group["lr"] = rate * group["lr_scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's state as `<parameter>/<moment>` tensors."""
    return {
        f"{name}/{key}{piece}": tensor
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        for piece, tensor in pieces(value).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the tensors of `optimizer_tensors`. Raises CheckpointError for a parameter that is not trained here."""
    optimizer.state.clear()
    for full_name in tensors:
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"The checkpoint's optimizer state names {name}, which is not a trained parameter.")
        parameter = parameters[name]
        optimizer.state[parameter][key] = stored_like(tensors, full_name, parameter)
    for trained, state in list(optimizer.state.items()):
        optimizer.state[trained] = joined(state, trained)
        if "step" in state and not optimizer.defaults.get("fused"):  # then it was made on the CPU
            optimizer.state[trained]["step"] = state["step"].cpu()
