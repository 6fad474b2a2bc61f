"""What every host needs: late imports with a helpful error, and strict filling of a module with a file's tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_tensors, read_header, require_finite, require_kind
from ..errors import CheckpointError, MissingDependencyError


def host_class(module: str, name: str) -> Any:
    """Class `name` of `module`, imported now.

    The exact submodule is imported where the class is first used, so that starting the command line does not pay
    for all of diffusers and transformers.

    Raises:
        MissingDependencyError: the package is not installed; the message names the pip command.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        package = module.split(".", 1)[0]
        raise MissingDependencyError(
            f"{name} needs the package {error.name or package}, which is not installed. "
            'Run: pip install "contextanyone[cli]"'
        ) from error


def open_weights(path: Path, kind: str, keys: frozenset[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and tensors of a safetensors file that must be of `kind`, its config holding exactly `keys`.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, has another config, or holds NaN or infinity.
    """
    header = read_header(path)
    require_kind(path, header, kind)
    missing, unknown = sorted(keys - header.config.keys()), sorted(header.config.keys() - keys)
    if missing or unknown:
        raise CheckpointError(
            f"{path} has a config that does not fit a {kind}: missing {', '.join(missing) or 'nothing'}, "
            f"unknown {', '.join(unknown) or 'nothing'}."
        )
    tensors = load_tensors(path)
    require_finite(path, tensors)
    return header.config, tensors


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
    wanted = module.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{path} does not fit its own config: {shown}.")
    module.load_state_dict(dict(tensors), assign=True)
    return module.requires_grad_(False).eval()
