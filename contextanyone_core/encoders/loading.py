"""Strict filling of a library's module with the tensors of a file."""

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
    """Config and tensors of a file or folder that must hold a model of `kind`, its config holding exactly `keys`.

    A public file without our config (original .pth, ComfyUI's single file, diffusers' folder) has the one that its
    shapes tell; its tensors come under our names.

    Args:
        path: a weight file, an index of shards, or a folder with one model.
        kind: what it must be.
        keys: of the config.
        dtype: of the floating tensors; None keeps the file's.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, has another config, or holds NaN or infinity.
    """
    source = open_source(path)
    config = checked_config(source, kind, keys)
    if source.unknown:
        raise CheckpointError(f"{path} is {source.recognised} with names of no such model: {source.unknown[:8]}.")
    tensors = {name: source.read(name, dtype) for name in source.tensors}
    require_finite(path, tensors)
    return config, tensors


def checked_config(source: WeightSource, kind: str, keys: frozenset[str]) -> dict[str, Any]:
    """The config of an opened file that must hold a model of `kind`: exactly `keys`.

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
    """Build a module on the meta device: its names and shapes without allocating or initialising anything."""
    with torch.device("meta"):
        return build()


def fill(module: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> Any:
    """Put `tensors` into a module of `on_meta`, ready for inference: every name and shape must fit.

    Buffers that no file holds are left to the caller.

    Raises:
        CheckpointError: listing names that are missing, unknown or of another shape.
    """
    if differences := compare(expected_tensors(module), tensors):
        raise CheckpointError(f"{path} does not fit its own config: {differences}.")
    module.load_state_dict(dict(tensors), assign=True)
    return module.requires_grad_(False).eval()
