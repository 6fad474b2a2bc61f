"""A tensor stored in a file: its dtype, shape and byte range, and reading it without the rest of the file."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4,
}  # fmt: skip
"""Bits per element, by safetensors' dtype name."""

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Dtypes that torch supports, by safetensors' name."""

COMPUTED = ("F64", "F32", "F16", "BF16")
"""Floating-point dtypes that torch's layers compute in; the others are for storage only."""

_MAPPED = 1 << 20  # bytes

INTEGERS = ("I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL")
"""Dtypes of tensors that are not weights."""


@dataclass(frozen=True)
class TensorInfo:
    """dtype (safetensors' name such as F16, or ggml's such as Q4_K if quantised) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor and its byte range, which its creator has checked to lie within the file.

    Attributes:
        file: the file that holds the bytes.
        offset, size: start and length in bytes.
        stride: strides in elements if the tensor is not contiguous; None if it is.
    """

    file: Path
    offset: int
    size: int
    stride: tuple[int, ...] | None = None


def read_bytes(stored: StoredTensor) -> Tensor:
    """The tensor's bytes as uint8, read into new memory.

    Raises:
        CheckpointError: the file cannot be read, or has been truncated.
    """
    buffer = _buffer(stored.size)
    try:
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            view, done = buffer.data, 0
            while done < stored.size:
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{stored.file} became shorter while it was read. Download it again.")
                done += count
    except OSError as error:
        raise CheckpointError(f"{stored.file} cannot be read: {error.strerror}.") from error
    return torch.from_numpy(buffer)


def stored_rows(stored: StoredTensor, rows: range) -> StoredTensor:
    """Consecutive rows of a contiguous, unquantised tensor (n, ...), as a stored tensor of their own."""
    size = stored.size // max(stored.shape[0], 1)
    shape = (len(rows), *stored.shape[1:])
    return replace(stored, shape=shape, offset=stored.offset + rows.start * size, size=len(rows) * size)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; copies only fp8."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # fp8 has no comparisons
        return all(bool(piece.float().isfinite().all()) for piece in torch.split(tensor.reshape(-1), 1 << 20))
    low, high = torch.aminmax(tensor)  # propagates NaN
    return math.isfinite(low.item()) and math.isfinite(high.item())


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor. Large ones get their own memory mapping, which is returned to the system when freed.

    Otherwise a sequence of weights of different sizes fragments the heap until it is as large as all of them together.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(_buffer(size)).view(dtype).view(shape)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype; the same tensor if it already has that dtype."""
    return tensor if tensor.dtype is dtype else empty(tuple(tensor.shape), dtype).copy_(tensor)


def _buffer(size: int) -> NDArray[np.uint8]:
    if size < _MAPPED:
        return np.zeros(size, dtype=np.uint8)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return np.frombuffer(mmap.mmap(-1, size, **private), dtype=np.uint8)


def read_plain(stored: StoredTensor) -> Tensor:
    """Read the tensor as stored, for every dtype of `TORCH_DTYPES`.

    Raises:
        CheckpointError: torch does not have the dtype, or as `read_bytes`.
    """
    if stored.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"{stored.file} holds a tensor as {stored.dtype}, which this version cannot read; "
            "use a file in bf16, fp16, fp8 or GGUF."
        )
    if not stored.size:
        return torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype])
    flat = read_bytes(stored).view(TORCH_DTYPES[stored.dtype])
    if stored.stride is None:
        return flat.view(stored.shape)
    return torch.as_strided(flat, stored.shape, stored.stride).contiguous()
