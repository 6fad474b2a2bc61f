"""PEFT's adapter config, from `adapter_config.json` or from the header that diffusers' `save_lora_weights` writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import CheckpointError
from .container import Container

_HEADER = "lora_adapter_metadata"
_FILE = "adapter_config.json"
_MAX_FILE = 10_000_000  # bytes
_NORMS = ("lora_magnitude_vector", "dora_scale")  # of DoRA
_METHODS = ("LORA", "LOHA", "LOKR")
Number = TypeVar("Number", int, float)
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings that determine the scale of each update.

    Attributes:
        alpha, rank: defaults for all modules; rank is None if the file does not state it.
        alphas, ranks: overrides for single modules, keyed by the end of the name, or by `^` and the full name.
        rslora: scale by alpha / sqrt(rank) instead of alpha / rank.
    """

    alpha: float
    rank: int | None
    alphas: Mapping[str, float]
    ranks: Mapping[str, int]
    rslora: bool

    def scale(self, module: str, rank: int | None) -> float:
        """The scale of the update of `module`, named as in the file; `rank` None takes the configured rank."""
        rank = rank or _own(module, self.ranks, self.rank or 1)
        return _own(module, self.alphas, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def adapter_config(container: Container) -> AdapterConfig | None:
    """The adapter config of a file or folder, or None if it has none.

    `adapter_config.json` is read from the folder that was opened, or from beside a file with PEFT's names.

    Raises:
        CheckpointError: the config is not readable, its method is not supported, or the file lacks what it states.
    """
    if _HEADER in container.metadata:
        origin = f"{container.path} is damaged: the {_HEADER} in its header"
        return _parse(origin, container.metadata[_HEADER], "transformer.", container)
    folder = container.path if container.path.is_dir() else container.path.parent
    if not (container.path.is_dir() or any(key.startswith("base_model.") for key in container.tensors)):
        return None
    try:
        with (folder / _FILE).open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / _FILE} cannot be read ({error}).") from error
    return _parse(str(folder / _FILE), text, "", container)


def _parse(origin: str, text: str, prefix: str, container: Container) -> AdapterConfig | None:
    try:
        stated = {key.removeprefix(prefix): value for key, value in json.loads(text).items()}
        alpha: Any = stated.get("lora_alpha", stated.get("alpha"))
        if alpha is None and prefix:  # the header describes other components
            return None
        config = AdapterConfig(
            float(alpha),
            int(stated["r"]) if stated.get("r") is not None else None,
            {str(name): float(value) for name, value in (stated.get("alpha_pattern") or {}).items()},
            {str(name): int(value) for name, value in (stated.get("rank_pattern") or {}).items()},
            bool(stated.get("use_rslora")),
        )
        numbers = (config.alpha, *config.alphas.values())
        if not all(map(math.isfinite, numbers)) or any(rank < 1 for rank in (config.rank or 1, *config.ranks.values())):
            raise ValueError("alpha or rank is no number")
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{origin} is not readable as PEFT's config of an adapter.") from error
    _refuse_unsupported(origin, stated, config)
    if stated.get("use_dora") and not any(norms in key for key in container.tensors for norms in _NORMS):
        raise CheckpointError(
            f"{origin} has use_dora, and the file has no lora_magnitude_vector; save the adapter again."
        )
    return config


def _refuse_unsupported(origin: str, stated: Mapping[str, Any], config: AdapterConfig) -> None:
    method = str(stated.get("peft_type", "LORA")).upper()
    if method not in _METHODS:
        raise CheckpointError(f"{origin} is of {method[:40]!r}; LORA (also with DoRA), LOHA and LOKR are supported.")
    start = str(stated.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_THE_BASE):
        raise CheckpointError(
            f"{origin} has init_lora_weights {start[:40]!r}, which changes the base's weights; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a LoRA of the unchanged base."
        )
    for name in (*config.alphas, *config.ranks):
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise CheckpointError(
                f"{origin} has the pattern {name[:80]!r}, a regular expression; only names of modules are supported."
            )


def _own(module: str, own: Mapping[str, Number], common: Number) -> Number:
    """The value for a module: its override, else the default."""
    ends = (value for name, value in own.items() if name == f"^{module}" or f".{module}".endswith(f".{name}"))
    return next(ends, common)
