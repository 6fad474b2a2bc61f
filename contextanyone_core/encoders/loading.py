"""Strict loading of weight files into modules of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..weights.checkpoint import require_finite, require_kind
from ..weights.comparison import compare, expected_tensors
from ..weights.source import WeightSource, open_source


def open_weights(
    path: Path, kind: str, keys: frozenset[str], dtype: torch.dtype | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read config and tensors of a file or folder with a model of `kind`; the config must have exactly `keys`.

    For a public file without our config (original .pth, ComfyUI's single file, diffusers' folder) it is inferred from
    the shapes, and the tensors get our names.

    Args:
        path: a weight file, an index of shards, or a folder with one model.
        kind: required kind of model.
        keys: required keys of the config.
        dtype: dtype of floating-point tensors; None keeps the file's.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, has other config keys, or holds NaN or infinity.
    """
    source = open_source(path)
    config = checked_config(source, kind, keys)
    if source.unknown:
        raise CheckpointError(f"{path} is {source.recognised} with names of no such model: {source.unknown[:8]}.")
    tensors = {name: source.read(name, dtype) for name in source.tensors}
    require_finite(path, tensors)
    return config, tensors


def checked_config(source: WeightSource, kind: str, keys: frozenset[str]) -> dict[str, Any]:
    """The config of an opened file, which must hold a model of `kind` and have exactly `keys`.

    Raises:
        CheckpointError: the file is of another kind, or its config has other keys.
    """
    require_kind(source.recognised, kind)
    config = source.config()
    missing, unknown = sorted(keys - config.keys()), sorted(config.keys() - keys)
    if missing or unknown:
        raise CheckpointError(
            f"{source.path} has a config that does not fit a {kind}: missing {', '.join(missing) or 'nothing'}, "
            f"unknown {', '.join(unknown) or 'nothing'}."
        )
    return config


def on_meta(build: Callable[[], Any]) -> Any:
    """Build a module on the meta device: names and shapes without allocation or initialisation."""
    with torch.device("meta"):
        return build()


def fill(module: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> Any:
    """Load `tensors` into a module of `on_meta` and set it to inference mode; every name and shape must match.

    Non-persistent buffers, which no file holds, are left to the caller.

    Raises:
        CheckpointError: names are missing, unknown or of another shape; the message lists them.
    """
    if differences := compare(expected_tensors(module), tensors):
        raise CheckpointError(f"{path} does not fit its own config: {differences}.")
    module.load_state_dict(dict(tensors), assign=True)
    return module.requires_grad_(False).eval()
