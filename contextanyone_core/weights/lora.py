"""LoRA files of every form in circulation, on our transformer: attached at a strength, merged, and saved.

Read: ComfyUI's and kijai's `diffusion_model.blocks.0.self_attn.q.lora_A.weight` (also `lora_down`), musubi's
`lora_unet_blocks_0_self_attn_q.lora_down.weight`, Fun's `lora_unet__...`, diffusers' and PEFT's
`transformer.blocks.0.attn1.to_q.lora_A.weight`; `alpha` beside any of them, or in the header as diffusers writes it;
and the differences `.diff`, `.diff_b` and `.diff_m` of weights, norms, biases and modulations that step-distilled LoRAs
carry.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.transformer import ContextAnyoneTransformer
from .checkpoint import LORA, require_finite, save_safetensors
from .container import Container, open_container
from .name_tables import transformer_table
from .naming import COMFYUI_PREFIX
from .tensors import read_plain

_LOG = logging.getLogger(__name__)
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "base_model.model.", "")
_FLAT_PREFIXES = ("lora_unet__", "lora_unet_")
_DIFFUSERS_MARKS = (".attn1.", ".attn2.", "condition_embedder.", "_attn1_", "_attn2_")
# What stands behind a module's name -> which part of an update it is.
_ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_down.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_B.weight": "up",
    ".lora_up.weight": "up",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
    ".diff_m": "modulation",
}
_HEADER = "lora_adapter_metadata"  # PEFT's config of the adapter, as diffusers keeps it in a file's header


@dataclass(frozen=True)
class LowRank:
    """A weight's update, scale * up @ down: up (out, rank), down (rank, in), a convolution's sides flattened."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def full(self) -> Tensor:
        """The update as a matrix (out, in), float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Lora:
    """A LoRA under our names.

    Attributes:
        name: of the file, for messages.
        low_rank: our module's name -> its update.
        differences: our parameter's name -> what is added to it.
        unknown: keys that belong to nothing in this transformer, or miss their other half.
    """

    name: str
    low_rank: dict[str, LowRank]
    differences: dict[str, Tensor]
    unknown: list[str] = field(default_factory=list)


@dataclass
class AttachedLoras:
    """LoRAs that act on a model until `detach`."""

    _handles: list[Any]
    _originals: dict[str, tuple[nn.Parameter, Tensor]]

    def detach(self) -> None:
        """Take them off again; the weights are bit for bit what they were."""
        for handle in self._handles:
            handle.remove()
        with torch.no_grad():
            for parameter, original in self._originals.values():
                parameter.copy_(original)
        self._handles.clear()
        self._originals.clear()


def load_lora(path: str | Path, model: ContextAnyoneTransformer) -> Lora:
    """Read a LoRA for this transformer; keys that it does not have are in `unknown` and in the log.

    Raises:
        CheckpointError: the file is damaged or no LoRA, nothing in it belongs to this transformer, or an update has
            another size than its weight.
    """
    container = open_container(path)
    places = _places(model, diffusers=any(mark in key for key in container.tensors for mark in _DIFFUSERS_MARKS))
    found: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, list[str]] = {}
    unknown = []
    for key, stored in container.tensors.items():
        module, part = _split(key)
        place = _resolve(module, places) if part else None
        if place is None:
            unknown.append(key)
        else:
            found.setdefault(place, {})[part] = read_plain(stored)
            keys.setdefault(place, []).append(key)
    lora = Lora(Path(path).name, {}, {}, unknown)
    parameters = dict(model.named_parameters())
    stated = _stated_config(container)
    for place, parts in found.items():
        if "down" in parts and "alpha" not in parts and stated:
            parts["alpha"] = _stated_alpha(stated, _split(keys[place][0])[0], parts["down"].shape[0])
        if not _collect(lora, parameters, place, parts):
            unknown += keys[place]
    _check(model, [(lora, 1.0)])
    require_finite(
        path, {f"{place} ({part})": value for place, parts in found.items() for part, value in parts.items()}
    )
    if not lora.low_rank and not lora.differences:
        shown = ", ".join(unknown[:3]) or "nothing"
        raise CheckpointError(f"{path} holds no LoRA for this transformer; it holds {shown[:300]}.")
    if unknown:
        _LOG.warning("%s: %d keys are not used, such as %s", lora.name, len(unknown), ", ".join(unknown[:5])[:300])
    return lora


def attach_loras(model: ContextAnyoneTransformer, loras: Sequence[tuple[Lora, float]]) -> AttachedLoras:
    """Let LoRAs act, each at its strength, without touching the large weights.

    Low-rank updates are added to their layers' outputs; differences of norms and biases are added to the parameters,
    whose originals are kept for `AttachedLoras.detach`.

    Raises:
        CheckpointError: a LoRA was read for a transformer of other sizes.
    """
    _check(model, loras)
    attached = AttachedLoras([], {})
    for lora, strength in loras:
        for name, update in lora.low_rank.items():
            layer = model.get_submodule(name)
            attached._handles.append(layer.register_forward_hook(_Added(update, strength)))
    with torch.no_grad():
        for lora, strength in loras:
            for name, difference in lora.differences.items():
                parameter = model.get_parameter(name)
                attached._originals.setdefault(name, (parameter, parameter.detach().clone()))
                _add(parameter, strength * difference.float())
    return attached


def merge_loras(model: ContextAnyoneTransformer, loras: Sequence[tuple[Lora, float]]) -> None:
    """Add LoRAs to the weights, each at its strength, for good; sums are float32, rounded once for each LoRA.

    Raises:
        CheckpointError: a LoRA was read for a transformer of other sizes.
    """
    _check(model, loras)
    with torch.no_grad():
        for lora, strength in loras:
            for name, update in lora.low_rank.items():
                _add(model.get_parameter(f"{name}.weight"), strength * update.full())
            for name, difference in lora.differences.items():
                _add(model.get_parameter(name), strength * difference.float())


def save_lora(
    path: str | Path, lora: Lora, *, dtype: torch.dtype = torch.bfloat16, extra: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA in the form that ComfyUI reads, updates of Emphasize-Attention like all others.

    Raises:
        CheckpointError, OSError: as `save_safetensors`.
    """
    tensors: dict[str, Tensor] = {}
    for name, update in lora.low_rank.items():
        key = f"{COMFYUI_PREFIX}{name}"
        tensors[f"{key}.lora_A.weight"] = update.down.to(dtype)
        tensors[f"{key}.lora_B.weight"] = update.up.to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(update.scale * update.down.shape[0])
    for name, difference in lora.differences.items():
        module, _, leaf = name.rpartition(".")
        ending = {"weight": f"{module}.diff", "bias": f"{module}.diff_b"}.get(leaf, f"{name}.diff")
        tensors[COMFYUI_PREFIX + ending] = difference.to(dtype)
    save_safetensors(path, tensors, kind=LORA, config={}, extra=extra)


class _Added:
    """A forward hook that adds strength * scale * up(down(x)) to a layer's output."""

    def __init__(self, update: LowRank, strength: float) -> None:
        self.down, self.up = update.down, update.up
        self.factor = strength * update.scale

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if self.down.device != x.device or self.down.dtype != x.dtype:  # kept where the layer works
            self.down, self.up = self.down.to(x), self.up.to(x)
        if isinstance(layer, nn.Conv3d):
            rank = self.down.shape[0]
            inner = F.conv3d(x, self.down.view(rank, -1, *layer.kernel_size), stride=layer.stride)
            return output + self.factor * F.conv3d(inner, self.up.view(-1, rank, 1, 1, 1))
        return output + self.factor * F.linear(F.linear(x, self.down), self.up)


def _places(model: ContextAnyoneTransformer, *, diffusers: bool) -> dict[str, str]:
    """A module's or bare parameter's name in the file, also with underscores for dots -> our name.

    The two namings are never mixed: what one calls norm2 is norm3 in the other.
    """
    table = transformer_table(model.config.num_layers)
    ours = {name for name, _ in model.named_modules() if name} | {name for name, _ in model.named_parameters()}
    named = {table[name]: name for name in ours if name in table} if diffusers else {name: name for name in ours}
    return named | {name.replace(".", "_"): place for name, place in named.items()}


def _split(key: str) -> tuple[str, str]:
    """A key's module and which part of the update it is; "" for what is no part of one."""
    ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
    return (key.removesuffix(ending), _ENDINGS[ending]) if ending else (key, "")


def _stated_config(container: Container) -> dict[str, Any]:
    """PEFT's config of the transformer's adapter, where the header has one."""
    if _HEADER not in container.metadata:
        return {}
    try:
        stated = json.loads(container.metadata[_HEADER])
        config = {key.removeprefix("transformer."): value for key, value in stated.items()}
        if "lora_alpha" in config:
            float(config["lora_alpha"])
            config["alpha_pattern"] = {str(name): float(x) for name, x in (config.get("alpha_pattern") or {}).items()}
            return config
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{container.path} is damaged: the {_HEADER} in its header is not readable.") from error
    return {}


def _stated_alpha(config: Mapping[str, Any], module: str, rank: int) -> Tensor:
    """The alpha of a module: its own, else everybody's. With rsLoRA alpha counts for the root of the rank."""
    own = (alpha for name, alpha in config["alpha_pattern"].items() if f".{module}".endswith(f".{name}"))
    alpha = next(own, float(config["lora_alpha"]))
    return torch.tensor(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)


def _resolve(module: str, places: Mapping[str, str]) -> str | None:
    for prefix in (*_FLAT_PREFIXES, *_PREFIXES):
        if module.startswith(prefix) and module.removeprefix(prefix) in places:
            return places[module.removeprefix(prefix)]
    return None


def _collect(lora: Lora, parameters: Mapping[str, nn.Parameter], place: str, parts: Mapping[str, Tensor]) -> bool:
    """Put what stands under one name into the LoRA; False where nothing of it can be used."""
    used = False
    if "down" in parts and "up" in parts and f"{place}.weight" in parameters:
        down, up = parts["down"], parts["up"]
        if down.ndim > 1 and up.ndim > 1 and down.shape[0]:
            alpha = parts["alpha"].float().reshape(-1) if "alpha" in parts else torch.empty(0)
            scale = float(alpha[0]) / down.shape[0] if alpha.numel() else 1.0
            lora.low_rank[place] = LowRank(down.flatten(1), up.flatten(1), scale)
            used = True
    for leaf in ("weight", "bias", "modulation"):
        name = place if leaf == "weight" and place in parameters else f"{place}.{leaf}"
        if leaf in parts and name in parameters:
            lora.differences[name] = parts[leaf]
            used = True
    return used


def _check(model: ContextAnyoneTransformer, loras: Iterable[tuple[Lora, float]]) -> None:
    parameters = dict(model.named_parameters())
    for lora, _ in loras:
        for name, update in lora.low_rank.items():
            weight = parameters.get(f"{name}.weight")
            wanted = tuple(weight.flatten(1).shape) if weight is not None and weight.ndim > 1 else None
            shape = (update.up.shape[0], update.down.shape[1])
            if shape != wanted or update.up.shape[1] != update.down.shape[0]:
                raise CheckpointError(f"{lora.name}: the update of {name} is for {shape}, the weight is {wanted}.")
        for name, difference in lora.differences.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.numel() != difference.numel():
                needed = None if parameter is None else tuple(parameter.shape)
                given = tuple(difference.shape)
                raise CheckpointError(f"{lora.name}: the difference of {name} is {given}, the parameter is {needed}.")


def _add(parameter: nn.Parameter, update: Tensor) -> None:
    parameter.copy_(parameter.float() + update.to(parameter.device).view(parameter.shape))
