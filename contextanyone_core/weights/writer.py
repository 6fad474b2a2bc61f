"""Streaming writer for safetensors: needs the memory of the largest tensor only, and replaces the file atomically.

Equal tensors and metadata give equal bytes, which are those of the safetensors library, with its metadata sorted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..atomic_file import whole_file
from ..errors import CheckpointError
from .tensors import BITS, TORCH_DTYPES, TensorInfo

NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""safetensors' name of each torch dtype."""
_PIECE = 1 << 22  # bytes


class OnDemand(Mapping[str, Tensor]):
    """Tensors that are read or computed anew whenever one is asked for, so that they are never all in memory."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a Mapping's own reads it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def require_parent(path: Path) -> None:
    """Check that the folder of `path` exists.

    Raises:
        CheckpointError: the folder does not exist.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is not a folder; make it before saving {path.name}.")


def write_streamed(
    path: Path,
    plan: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
    written: Callable[[bytes | memoryview], None] | None = None,
) -> None:
    """Write one safetensors file with one tensor in memory at a time.

    Args:
        path: the file, which appears only when it is complete.
        plan: dtype and shape of every tensor, by name.
        read: returns a tensor by name, with the planned dtype and shape.
        metadata: text entries of the header.
        progress: called with (tensors written, total).
        written: called with every piece of the file in order, to hash it in passing.

    Raises:
        CheckpointError: the folder does not exist, or a tensor's dtype or shape differs from the plan.
        OSError: the disk is full or the folder read-only; nothing is left behind.
    """
    order = sorted(plan, key=lambda name: (-BITS[plan[name].dtype], name))  # the alignment of the safetensors library
    header: dict[str, object] = {"__metadata__": dict(sorted(({"format": "pt"} | dict(metadata)).items()))}
    position = 0
    for name in order:
        info = plan[name]
        end = position + torch.Size(info.shape).numel() * BITS[info.dtype] // 8
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    require_parent(path)
    with whole_file(path) as beside, beside.open("wb") as file:
        note = written or (lambda _: None)
        file.write(start := len(text).to_bytes(8, "little") + text)
        note(start)
        for done, name in enumerate(order, start=1):
            tensor = read(name)
            if TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) != plan[name]:
                raise CheckpointError(f"{name} became {tuple(tensor.shape)} {tensor.dtype}, planned was {plan[name]}.")
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(data), _PIECE):
                file.write(piece := data[begin : begin + _PIECE])
                note(piece)
            if progress is not None:
                progress(done, len(order))
