"""LoRA files in the common formats: loaded for our transformer, merged at a strength, and saved.

Keys: ComfyUI's and kijai's `diffusion_model.blocks.0.self_attn.q.lora_A.weight` (also `lora_down`), musubi's
`lora_unet_blocks_0_self_attn_q.lora_down.weight`, Fun's `lora_unet__...`, LyCORIS's `lycoris_...`, diffusers' and
PEFT's `transformer.blocks.0.attn1.to_q.lora_A.weight`; `alpha` beside any of them, in the header as diffusers writes
it, or in PEFT's `adapter_config.json`; a bias of `lora_B`; and the full differences `.diff`, `.diff_b` and `.diff_m` of
weights, norms, biases and modulations in step-distilled LoRAs. Methods: LoRA (arXiv 2106.09685), rsLoRA
(2312.03732), DoRA (2402.09353), LoHa (2108.06098) and LoKr (2309.14859).
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

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lora:
    """A LoRA under our names.

    Attributes:
        name: the file's name, for messages.
        updates: module name -> update of its weight.
        differences: parameter name -> tensor that is added to it.
        unknown: keys that match nothing in this transformer, or lack their counterpart.
    """

    name: str
    updates: Mapping[str, Update]
    differences: Mapping[str, Tensor]
    unknown: Sequence[str] = field(default_factory=list)


def load_lora(path: str | Path, model: ContextAnyoneTransformer) -> Lora:
    """Read a LoRA for this transformer; keys that match nothing are listed in `unknown` and logged.

    Args:
        path: a file, or the folder of a PEFT adapter.
        model: the transformer to update.

    Raises:
        CheckpointError: the file is damaged or no LoRA, nothing in it matches this transformer, an update and its
            weight differ in size, one module has two updates, or a method is not supported.
    """
    container = open_container(path)
    name, parameters = Path(path).name, dict(model.named_parameters())
    found, unknown = sort_keys(name, container.tensors, model)
    config = adapter_config(container)
    updates: dict[str, Update] = {}
    differences: dict[str, Tensor] = {}
    for place, keys in found.items():
        parts = {part: read_plain(key.stored) for part, key in keys.items()}
        require_finite(path, {f"{place} ({part})": value for part, value in parts.items()})
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
    return Lora(name, updates, differences, unknown)


def merge_loras(model: ContextAnyoneTransformer, loras: Sequence[tuple[Lora, float]]) -> None:
    """Merge LoRAs into the weights in the given order; sums are float32 and rounded once per LoRA.

    The strength multiplies the whole change that a LoRA makes at strength 1, DoRA's rescaling included.

    Raises:
        CheckpointError: a LoRA was loaded for a transformer of another size.
    """
    parameters = dict(model.named_parameters())
    for lora, _ in loras:
        for name, update in lora.updates.items():
            check_update(lora.name, name, update, parameters.get(f"{name}.weight"))
        for name, difference in lora.differences.items():
            check_difference(lora.name, name, difference, parameters.get(name))
    with torch.no_grad():
        for lora, strength in loras:
            for name, update in lora.updates.items():
                weight = parameters[f"{name}.weight"]
                weight.copy_(weight.float() + strength * update.difference(weight.float()))
            for name, difference in lora.differences.items():
                parameter = parameters[name]
                change = strength * difference.float()
                parameter.copy_(parameter.float() + change.to(parameter.device).view(parameter.shape))


def save_lora(
    path: str | Path, lora: Lora, *, dtype: torch.dtype = torch.bfloat16, extra: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA in ComfyUI's format, updates of Emphasize-Attention included.

    Raises:
        CheckpointError: an update is not `LowRank`, or as `save_safetensors`.
        OSError: as `save_safetensors`.
    """
    tensors: dict[str, Tensor] = {}
    for name, update in lora.updates.items():
        if not isinstance(update, LowRank):
            raise CheckpointError(f"The update of {name} is a {type(update).__name__}; low-rank updates can be saved.")
        key = f"{COMFYUI_PREFIX}{name}"
        tensors[f"{key}.lora_A.weight"] = update.down.to(dtype)
        tensors[f"{key}.lora_B.weight"] = update.up.to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(update.scale * update.down.shape[0])
    for name, difference in lora.differences.items():
        module, _, leaf = name.rpartition(".")
        ending = {"weight": f"{module}.diff", "bias": f"{module}.diff_b"}.get(leaf, f"{name}.diff")
        tensors[COMFYUI_PREFIX + ending] = difference.to(dtype)
    save_safetensors(path, tensors, kind=LORA, config={}, extra=extra)
