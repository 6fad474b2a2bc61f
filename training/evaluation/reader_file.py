"""Files of the networks that read generated frames: the probe and the pose reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from contextanyone_core.errors import CheckpointError
from contextanyone_core.weights.checkpoint import load_tensors, save_safetensors
from contextanyone_core.weights.safetensors_file import read_header

Network = TypeVar("Network", bound=nn.Module)


def save_reader(network: nn.Module, config: Any, path: Path, kind: str, extra: dict[str, str] | None = None) -> None:
    """Write a network as one fp16 safetensors file with its dataclass `config` in the header."""
    tensors = {name: value.detach().to(torch.float16).contiguous() for name, value in network.state_dict().items()}
    save_safetensors(path, tensors, kind=kind, config=json.loads(json.dumps(asdict(config))), extra=extra)


def load_reader(path: Path, kind: str, build: Callable[[Mapping[str, Any]], Network]) -> Network:
    """Read a file of :func:`save_reader` into `build(config)`; float32, evaluation mode.

    Raises:
        CheckpointError: the file is damaged, of another kind, or its names are not the network's.
    """
    header = read_header(path)
    if header.kind != kind:
        raise CheckpointError(f"{path} is a {header.kind} file; a {kind} file is needed.")
    network = build({**header.config, "channels": tuple(header.config["channels"])})
    try:
        network.load_state_dict({name: value.float() for name, value in load_tensors(path).items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the {kind}: {error}") from None
    return network.eval().requires_grad_(False)
