"""Mapping of a LoRA file's keys to a module of the transformer and a part of its update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from ..model.transformer import ContextAnyoneTransformer
from .name_tables import transformer_table
from .naming import plain_name, split_prefix
from .tensors import StoredTensor

_FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lycoris_")
_DIFFUSERS_MARKS = (".attn1.", ".attn2.", "condition_embedder.", "_attn1_", "_attn2_")
_PARTS = {
    "lora_A": "down",
    "lora_down": "down",
    "lora_B": "up",
    "lora_up": "up",
    "alpha": "alpha",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "dora_scale",
    "diff": "weight",
    "diff_b": "bias",
    "diff_m": "modulation",
    "w_norm": "weight",
    "b_norm": "bias",
    "reshape_weight": "reshape",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
}
"""Suffix of a module's name -> part of the update."""
_METHODS = {
    "lora_mid": "the core of a Tucker decomposition (LoCon)",
    "hada_t1": "the core of a Tucker decomposition (LoHa)",
    "hada_t2": "the core of a Tucker decomposition (LoHa)",
    "lokr_t2": "the core of a Tucker decomposition (LoKr)",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "oft_R": "OFT",
    "boft_R": "BOFT",
    "a1": "GLoRA",
    "a2": "GLoRA",
    "b1": "GLoRA",
    "b2": "GLoRA",
    "ia3_l": "IA3",
    "on_input": "IA3",
    "lora_E": "AdaLoRA",
    "vera_lambda_b": "VeRA",
    "vera_lambda_d": "VeRA",
    "set_weight": "a weight that replaces the model's",
    "modules_to_save": "a module that PEFT trained in full",
    "weight": "a weight that was trained in full",
    "bias": "a bias that was trained in full",
}
"""Suffixes of unsupported methods; any other suffix of a module's name is unsupported too."""


@dataclass(frozen=True)
class Part:
    """One tensor of an update, with its key in the file."""

    key: str
    module: str
    stored: StoredTensor


def sort_keys(
    file: str, tensors: Mapping[str, StoredTensor], model: ContextAnyoneTransformer
) -> tuple[dict[str, dict[str, Part]], list[str]]:
    """The tensors of a file by module and part, and the keys that match nothing in this transformer.

    Args:
        file: its name, for messages.
        tensors: the file's tensors by key.
        model: the transformer to update.

    Raises:
        CheckpointError: two keys name the same part of one module, or a key belongs to an unsupported method.
    """
    places = _places(model, diffusers=any(mark in key for key in tensors for mark in _DIFFUSERS_MARKS))
    layers = {name.removesuffix(".weight") for name, _ in model.named_parameters() if name.endswith(".weight")}
    found: dict[str, dict[str, Part]] = {}
    unknown = []
    for key, stored in tensors.items():
        module, part = _split_key(key)
        place = _resolve(module, places) if part else None
        if place is None:
            _refuse_unsupported(file, key, places, layers)
            unknown.append(key)
            continue
        parts = found.setdefault(place, {})
        if part in parts:
            raise CheckpointError(
                f"{file}: {parts[part].key} and {key} are both the same part of an update of {place}; "
                "keep one of the two updates in a file, and give the other as a second LoRA."
            )
        parts[part] = Part(key, module, stored)
    return found, unknown


def _split_key(key: str) -> tuple[str, str]:
    """A key's module and the part of the update that it names; "" if it names none.

    PEFT may insert the adapter's name before `weight`, as in `lora_A.default.weight`.
    """
    words = plain_name(key).split(".")
    index = max((index for index, word in enumerate(words) if index and word in _PARTS), default=0)
    part, rest = _PARTS.get(words[index], ""), words[index + 1 :]
    if part == "up" and rest[-1:] == ["bias"]:
        part, rest = "up_bias", rest[:-1]
    elif rest[-1:] == ["weight"]:
        rest = rest[:-1]
    known = index > 0 and len(rest) <= 1 and rest != ["bias"]
    return (".".join(words[:index]), part) if known else (key, "")


def _places(model: ContextAnyoneTransformer, *, diffusers: bool) -> dict[str, str]:
    """Name of a module or bare parameter in the file, also with underscores instead of dots -> our name.

    A file uses Wan's or diffusers' names, never both: norm2 in one is norm3 in the other.
    """
    table = transformer_table(model.config.num_layers)
    ours = {name for name, _ in model.named_modules() if name} | {name for name, _ in model.named_parameters()}
    named = {table[name]: name for name in ours if name in table} if diffusers else {name: name for name in ours}
    return named | {name.replace(".", "_"): place for name, place in named.items()}


def _resolve(module: str, places: Mapping[str, str]) -> str | None:
    flat = (module.removeprefix(prefix) for prefix in _FLAT_PREFIXES if module.startswith(prefix))
    names: Iterable[str] = (*flat, split_prefix(module)[1])
    return next((places[name] for name in names if name in places), None)


def _refuse_unsupported(file: str, key: str, places: Mapping[str, str], layers: set[str]) -> None:
    """Refuse an unknown key of one of our layers: without it the layer's update would be incomplete."""
    words = plain_name(key).split(".")
    for end in range(len(words) - 1, 0, -1):
        if _resolve(".".join(words[:end]), places) in layers:
            method = _METHODS.get(words[end], "no part of an update that this version knows")
            raise CheckpointError(
                f"{file}: {key[:200]} is {method}, which is not supported; LoRA, DoRA, LoHa and LoKr are. Merge it "
                "into the weights where it was trained, and use those."
            )
