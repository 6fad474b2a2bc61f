"""LoRA files in the common formats: loaded for our transformer, merged at a strength, and saved.

Keys: ComfyUI's and kijai's `diffusion_model.blocks.0.self_attn.q.lora_A.weight` (also `lora_down`), musubi's
`lora_unet_blocks_0_self_attn_q.lora_down.weight`, Fun's `lora_unet__...`, LyCORIS's `lycoris_...`, diffusers' and
PEFT's `transformer.blocks.0.attn1.to_q.lora_A.weight`; `alpha` beside any of them, in the header as diffusers writes
it, or in PEFT's `adapter_config.json`; a bias of `lora_B`; and the full differences `.diff`, `.diff_b` and `.diff_m` of
weights, norms, biases and modulations in step-distilled LoRAs. ComfyUI's `patch_embedding.reshape_weight` first widens
the patch embedding with zeros, as control LoRAs of Wan T2V do. Methods: LoRA (arXiv 2106.09685), rsLoRA (2312.03732),
DoRA (2402.09353), LoHa (2108.06098) and LoKr (2309.14859).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.transformer import ContextAnyoneTransformer
from .adapter_config import adapter_config
from .checkpoint import require_finite, save_safetensors
from .container import open_container
from .lora_keys import sort_keys
from .lora_updates import LowRank, Update, build, check_difference, check_update
from .naming import COMFYUI_PREFIX, LORA, split_prefix
from .tensors import read_plain
from .writer import OnDemand

PATCHES = "patch_embedding.weight"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lora:
    """A LoRA under our names.

    Attributes:
        name: the file's name, for messages.
        updates: module name -> update of its weight.
        differences: parameter name -> tensor that is added to it.
        unknown: keys that match nothing in this transformer, or lack their counterpart.
        patch_shape: shape (dim, C, 1, 2, 2) to which the patch embedding's weight is widened before the update; None
            leaves it as it is.
    """

    name: str
    updates: Mapping[str, Update]
    differences: Mapping[str, Tensor]
    unknown: Sequence[str] = field(default_factory=list)
    patch_shape: tuple[int, ...] | None = None


def load_lora(path: str | Path, model: ContextAnyoneTransformer) -> Lora:
    """Read a LoRA for this transformer; keys that match nothing are listed in `unknown` and logged.

    Args:
        path: a file, or the folder of a PEFT adapter.
        model: the transformer to update.

    Raises:
        CheckpointError: the file is damaged or no LoRA, nothing in it matches this transformer, an update and its
            weight differ in size, one module has two updates, a method is not supported, or another weight than the
            patch embedding's is widened, or that to other channels than a pose and a start frame.
    """
    container = open_container(path)
    name = Path(path).name
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    found, unknown = sort_keys(name, container.tensors, model)
    config = adapter_config(container)
    updates: dict[str, Update] = {}
    differences: dict[str, Tensor] = {}
    patch_shape = None
    for place, keys in found.items():
        parts = {part: read_plain(key.stored) for part, key in keys.items()}
        require_finite(path, {f"{place} ({part})": value for part, value in parts.items()})
        weight = parameters.get(f"{place}.weight")
        if weight is not None and {"down", "up", "reshape"} <= parts.keys():
            shape = _widened_shape(name, place, parts.pop("reshape"), model)
            if shape != tuple(weight.shape):
                patch_shape = shape
                parameters[f"{place}.weight"] = torch.empty(shape, device="meta")
        module = split_prefix(next(iter(keys.values())).module)[1]
        built = build(name, place, parts, parameters, None if config is None else partial(config.scale, module))
        if built.update is not None:
            updates[place] = built.update
        if twice := sorted(built.differences.keys() & differences.keys()):
            raise CheckpointError(f"{name} changes {twice[0]} by two keys; keep one of the two in a file.")
        differences |= built.differences
        unknown += [keys[part].key for part in built.unused]
    if not updates and not differences:
        listed = ", ".join(unknown[:3]) or "nothing"
        raise CheckpointError(f"{path} holds no LoRA for this transformer; it holds {listed[:300]}.")
    if unknown:
        _LOG.warning("%s: %d keys are not used, such as %s", name, len(unknown), ", ".join(unknown[:5])[:300])
    return Lora(name, updates, differences, unknown, patch_shape)


def _widened_shape(file: str, place: str, stated: Tensor, model: ContextAnyoneTransformer) -> tuple[int, ...]:
    """The shape that a file states for a weight: the weight's own, or the patch embedding's with condition channels.

    Raises:
        CheckpointError: it is another.
    """
    shape = tuple(int(size) for size in stated.reshape(-1).tolist())
    weight = model.get_parameter(f"{place}.weight")
    if shape == tuple(weight.shape):
        return shape
    config = model.config
    wide = (config.dim, 3 * config.in_dim, *config.patch_size)
    if f"{place}.weight" != PATCHES or shape != wide or config.condition_dim:
        raise CheckpointError(
            f"{file} widens {place} from {tuple(weight.shape)} to {shape}, which is not supported; only the patch "
            f"embedding can be widened, to {wide}: noise, pose and start frame, as in Wan2.1-Fun-Control."
        )
    return shape


def merge_loras(model: ContextAnyoneTransformer, loras: Sequence[tuple[Lora, float]]) -> None:
    """Merge LoRAs into the weights in the given order; sums are float32 and rounded once per LoRA.

    The strength multiplies the whole change that a LoRA makes at strength 1, DoRA's rescaling included. A LoRA that
    widens the patch embedding gives the model condition channels (`model.condition`) at any strength.

    Raises:
        CheckpointError: a LoRA was loaded for a transformer of another size.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for lora, _ in loras:
        if lora.patch_shape is not None:
            parameters[PATCHES] = torch.empty(lora.patch_shape, device="meta")
        for name, update in lora.updates.items():
            check_update(lora.name, name, update, parameters.get(f"{name}.weight"))
        for name, difference in lora.differences.items():
            check_difference(lora.name, name, difference, parameters.get(name))
    with torch.no_grad():
        for lora, strength in loras:
            if lora.patch_shape is not None:
                model.add_condition_channels()
            parameters = dict(model.named_parameters())
            for name in dict.fromkeys((*(f"{module}.weight" for module in lora.updates), *lora.differences)):
                parameters[name].copy_(merged(lora, strength, name, parameters[name]))


def merged(lora: Lora, strength: float, name: str, parameter: Tensor) -> Tensor:
    """One parameter with what a LoRA changes of it, in its dtype, as `merge_loras` computes it."""
    if (update := lora.updates.get(name.removesuffix(".weight"))) is not None and name.endswith(".weight"):
        weight = parameter.float()
        parameter = (weight + strength * update.difference(weight)).to(parameter.dtype)
    if name in lora.differences:
        change = strength * lora.differences[name].float()
        changed = parameter.float() + change.to(parameter.device).view(parameter.shape)
        parameter = changed.to(parameter.dtype)
    return parameter


def save_lora(
    path: str | Path, lora: Lora, *, dtype: torch.dtype = torch.bfloat16, extra: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA in ComfyUI's format, updates of Emphasize-Attention included.

    Differences may be `OnDemand`: one at a time is in memory.

    Raises:
        CheckpointError: an update is not `LowRank`, or as `save_safetensors`.
        OSError: as `save_safetensors`.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, str] = {}  # of the differences, by their keys
    for name, update in lora.updates.items():
        if not isinstance(update, LowRank):
            raise CheckpointError(f"The update of {name} is a {type(update).__name__}; low-rank updates can be saved.")
        key, down, up = f"{COMFYUI_PREFIX}{name}", update.down, update.up
        if lora.patch_shape is not None and f"{name}.weight" == PATCHES:
            kernel = lora.patch_shape[1:]
            down, up = down.view(-1, *kernel), up.view(*up.shape, *[1] * (len(kernel) - 1))
            tensors[f"{key}.reshape_weight"] = torch.tensor(lora.patch_shape)
        tensors[f"{key}.lora_A.weight"] = down.to(dtype)
        tensors[f"{key}.lora_B.weight"] = up.to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(update.scale * update.down.shape[0])
    for name in lora.differences:
        module, _, leaf = name.rpartition(".")
        ending = {"weight": f"{module}.diff", "bias": f"{module}.diff_b"}.get(leaf, f"{name}.diff")
        places[COMFYUI_PREFIX + ending] = name

    def read(key: str) -> Tensor:
        return tensors[key] if key in tensors else lora.differences[places[key]].to(dtype)

    save_safetensors(path, OnDemand((*tensors, *places), read), kind=LORA, config={}, extra=extra)
