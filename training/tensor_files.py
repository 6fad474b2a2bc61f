"""Tensors of a checkpoint in safetensors files: hashed while written, whole or in shards, read piece by piece.

A shard's file holds rows of a tensor along its first axis; `rows` in its header's metadata has, by name, the first row
and how many rows all shards have together.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from contextanyone_core.weights.tensors import TensorInfo
from contextanyone_core.weights.writer import NAMES, write_streamed


class Rows(NamedTuple):
    """Rows of a tensor from `start` on, of `total` that all shards have together."""

    tensor: Tensor
    start: int
    total: int


def write_hashed(
    path: Path, tensors: Mapping[str, Tensor | Rows], after_piece: Callable[[float], None] = lambda worked: None
) -> str:
    """Write a safetensors file of CPU tensors. Returns its SHA-256, taken while writing.

    Args:
        after_piece: called after every few megabytes, with the seconds that their hash took.

    Raises:
        OSError: the disk is full or not writable.
    """
    plain = {name: (given.tensor if isinstance(given, Rows) else given).detach() for name, given in tensors.items()}
    rows = {name: [given.start, given.total] for name, given in tensors.items() if isinstance(given, Rows)}
    plan = {name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in plain.items()}
    digest = hashlib.sha256()

    def written(piece: bytes | memoryview) -> None:
        began = time.monotonic()
        digest.update(piece)
        after_piece(time.monotonic() - began)

    try:
        write_streamed(path, plan, plain.__getitem__, {"rows": json.dumps(rows)} if rows else {}, written=written)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from None
    return digest.hexdigest()


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of one file, or of all shards of one, read when they are asked for.

    The files stay open as long as this lives. A tensor that is whole in a file is mapped, not read.

    Raises:
        ValueError: a shard is missing: a tensor's rows are not all there.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}  # first row, row after the last, file
        self._shapes: dict[str, torch.Size] = {}
        for path in sorted(paths):
            file: Any = safe_open(path, "pt")
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                shape = file.get_slice(name).get_shape()
                own = shape[0] if shape else 1
                start, total = rows.get(name, (0, own))
                self._pieces.setdefault(name, []).append((start, start + own, file))
                self._shapes[name] = torch.Size([total, *shape[1:]] if shape else [])
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece[0])
            rows_found = sum(end - start for start, end, _ in pieces)
            if rows_found != (self._shapes[name][0] if self._shapes[name] else 1):
                raise ValueError(f"{rows_found} of the rows of {name} are there, not all")

    def shape(self, name: str) -> torch.Size:
        """The whole tensor's shape."""
        return self._shapes[name]

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """A copy of the rows from start to end, read from the shards that have some of them."""
        found = [
            file.get_slice(name)[max(start, first) - first : min(end, last) - first]
            for first, last, file in self._pieces[name]
            if max(start, first) < min(end, last)
        ]
        if not found:
            return self._pieces[name][0][2].get_slice(name)[:0].clone()  # type: ignore[no-any-return]
        return torch.cat(found)

    def __getitem__(self, name: str) -> Tensor:
        first, *others = self._pieces[name]
        tensor: Tensor = first[2].get_tensor(name) if not others else self.rows(name, 0, self._shapes[name][0])
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._pieces  # a Mapping's own reads it

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)
