"""A LoRA of the backbone (peft) with the new parts trained in full: what is adapted, and what a file of it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.lora import Lora
from contextanyone_core.weights.lora_updates import LowRank
from contextanyone_core.weights.writer import OnDemand
from training.patterns import matches, require_matches
from training.quantised import Storage
from training.shares import Shares

# Paper: all blocks are fine-tuned. A LoRA of them beside the parts that Wan 2.1 T2V lacks is this project's.
NEW_PARTS = ("*.emphasize_attn.*", "*.norm_emphasize.*", "img_emb.*", "*_img.*")
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"


class LoraSettings(BaseModel):
    """Low-rank updates of linear layers, and what is trained in full beside them.

    Attributes:
        rank, alpha: the update of a weight is alpha / rank * up @ down.
        targets: patterns over the names of linear layers, such as `blocks.*.self_attn.*`.
        full: patterns over parameters that are trained themselves; a weight among them has no update.
        merged: whether an export also writes the network with the LoRA merged.
        base: how the blocks' linear layers are stored that are not trained themselves.
        offload: whether those of all blocks but the ones at work are in host memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = Field(("blocks.*.self_attn.*", "blocks.*.cross_attn.*", "blocks.*.ffn.*"), min_length=1)
    full: tuple[str, ...] = NEW_PARTS
    merged: bool = True
    base: Storage = "float32"
    offload: bool = False


def add_lora(transformer: ContextAnyoneTransformer, settings: LoraSettings, shares: Shares | None = None) -> None:
    """Give the targets updates that are zero at first. They and what is trained in full have gradients, nothing else.

    Args:
        shares: of a network on the meta device, to keep the updates' values.

    Raises:
        InputError: a pattern matches nothing.
        MissingDependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # two seconds that other trainings do not need
    except ImportError:
        raise MissingDependencyError("part.train.lora needs peft, which is not installed: pip install peft.") from None
    parameters = [name for name, _ in transformer.named_parameters()]
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    own = [pattern for pattern in settings.full if pattern not in NEW_PARTS]  # of those, a network may lack some
    require_matches("part.train.lora.full", own, parameters, "no parameter")
    require_matches("part.train.lora.targets", settings.targets, linear, "no linear layer")
    full = {name for name in parameters if matches(name, settings.full)}
    chosen = [name for name in linear if matches(name, settings.targets) and f"{name}.weight" not in full]
    if not chosen:
        raise InputError("part.train.lora.targets names only layers that part.train.lora.full trains in full.")
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=chosen)
    before = torch.get_rng_state()
    inject_adapter_in_model(config, transformer)
    if shares is not None:
        torch.set_rng_state(before)
        _draw_again(transformer, shares)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name or _own_name(name) in full)


def _draw_again(transformer: nn.Module, shares: Shares) -> None:
    """Draw the updates' values, which peft draws and loses on the meta device, layer by layer as it does."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        pair: list[nn.Linear] = [getattr(layer, kind)["default"] for kind in ("lora_A", "lora_B")]
        for linear in pair:
            linear.to_empty(device="cpu").reset_parameters()  # as when it was made
        layer.reset_lora_parameters("default", True)
        for linear in pair:
            shares.take(linear)


@contextmanager
def without_lora(transformer: nn.Module) -> Iterator[None]:
    """The network as it was before its updates: `add_lora`'s, switched off within the block."""
    try:
        _switch(transformer, on=False)
        yield
    finally:
        _switch(transformer, on=True)


def _switch(transformer: nn.Module, *, on: bool) -> None:
    """Switch the updates, not what is trained, which peft's switch would set for all of them.

    Under FSDP2 `parameters()` are other ones while a block is gathered, with flags of their own, which are copied from
    the shards at a gather: what differs in between would stay so.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    trained = [(parameter, parameter.requires_grad) for parameter in transformer.parameters()]
    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)
    for parameter, before in trained:
        parameter.requires_grad_(before)


@contextmanager
def lora_at(transformer: nn.Module, strength: float) -> Iterator[None]:
    """The network with the updates of `add_lora` at a strength within the block."""
    from peft.tuners.lora.layer import LoraLayer

    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    try:
        for layer in layers:
            layer.scale_layer(strength)
        yield
    finally:
        for layer in layers:
            layer.unscale_layer()  # back to what it was to the bit


def _own_name(name: str) -> str:
    """A parameter's name in the network; peft puts the layers that it adapts into others, as their `base_layer`."""
    return name.replace(".base_layer.", ".")


def trained_lora(
    trained: Mapping[str, Tensor], settings: LoraSettings, start: Mapping[str, Tensor], strength: float = 1.0
) -> Lora:
    """The result of a training with `add_lora`, as the content of a file: float32, on the CPU.

    What was trained in full is stored as the difference from the start, which is computed whenever it is asked for.

    Args:
        trained: parameters by their names in the network with its updates, which may be `OnDemand`. start: those of
            the network that the training started from, likewise.
        strength: of the training that the file has as its strength 1.
    """
    scale = strength * settings.alpha / settings.rank
    low_rank = {
        name.removesuffix(_DOWN): LowRank(_plain(trained[name]), _plain(trained[name.removesuffix(_DOWN) + _UP]), scale)
        for name in trained
        if name.endswith(_DOWN)
    }
    own = {_own_name(name): name for name in trained}
    full = [name for name in own if name in start and matches(name, settings.full)]
    return Lora("", low_rank, differences(full, own, trained, start, strength))


def differences(
    names: Iterable[str],
    own: Mapping[str, str],
    trained: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    strength: float = 1.0,
) -> Mapping[str, Tensor]:
    """Of the named parameters those that changed: their differences from the start, float32, on demand.

    Args:
        own: their names in `trained`. strength: factor of the differences.
    """

    def difference(name: str) -> Tensor:
        return strength * (_plain(trained[own[name]]) - _plain(start[name]))

    return OnDemand([name for name in names if difference(name).any()], difference)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float()
