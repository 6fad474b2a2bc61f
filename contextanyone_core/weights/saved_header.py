"""A header's metadata stored as a tensor, because other programs save the tensors only and drop the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .tensors import StoredTensor, read_plain

HEADER = "contextanyone_header"
"""Name of the tensor, after any prefix that a program adds to all names."""
_MAX_BYTES = 1_000_000


def header_tensor(values: Mapping[str, str]) -> Tensor:
    """A header's metadata as JSON, in uint8 bytes."""
    return torch.tensor(list(json.dumps(dict(values)).encode()), dtype=torch.uint8)


def restore_header(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors without any `HEADER`, and the metadata completed from it.

    Raises:
        CheckpointError: it is not readable.
    """
    weights = {name: stored for name, stored in tensors.items() if name.rpartition(".")[2] != HEADER}
    stated = dict(metadata)
    for name in tensors.keys() - weights.keys():
        stated |= _read(path, tensors[name])
    return weights, stated


def _read(path: Path, stored: StoredTensor) -> dict[str, str]:
    try:
        if stored.dtype != "U8" or stored.size > _MAX_BYTES:
            raise ValueError("no text")
        values = json.loads(bytes(read_plain(stored).tolist()))
        return {str(key): str(value) for key, value in values.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its {HEADER} is not readable. Save or download it again.") from error
