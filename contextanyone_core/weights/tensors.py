"""A tensor in a file: its dtype, shape and place, and how it is read without the rest of the file."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
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
"""Bits of one element, by safetensors' name of the dtype."""

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What torch can hold, by safetensors' name."""

COMPUTED = ("F64", "F32", "F16", "BF16")
"""The floating dtypes in which torch's layers compute; the others are for storage."""

_MAPPED = 1 << 20  # bytes

INTEGERS = ("I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL")
"""Dtypes of what is no weight."""


@dataclass(frozen=True)
class TensorInfo:
    """dtype (safetensors' name, such as F16; ggml's for a quantised one, such as Q4_K) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor and the bytes that hold it; whoever makes one has checked that they lie within the file.

    Attributes:
        file: the file that holds the bytes.
        offset, size: where they begin, and how many they are.
        stride: in elements, where the elements do not lie in the shape's own order; None where they do.
    """

    file: Path
    offset: int
    size: int
    stride: tuple[int, ...] | None = None


def read_bytes(stored: StoredTensor) -> Tensor:
    """The tensor's bytes as uint8, read into memory of their own.

    Raises:
        CheckpointError: the file cannot be read, or is shorter than it was.
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


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor; made without a copy, except of fp8."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # fp8 has no order
        return all(bool(piece.float().isfinite().all()) for piece in torch.split(tensor.reshape(-1), 1 << 20))
    low, high = torch.aminmax(tensor)  # NaN comes through
    return math.isfinite(low.item()) and math.isfinite(high.item())


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor for values to come. Large ones lie in a mapping of their own, which goes back to the system when freed.

    Weights of changing sizes, one after the other, fragment the allocator's heap until it is as large as all together.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(_buffer(size)).view(dtype).view(shape)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype; itself where it has it already."""
    return tensor if tensor.dtype is dtype else empty(tuple(tensor.shape), dtype).copy_(tensor)


def _buffer(size: int) -> NDArray[np.uint8]:
    if size < _MAPPED:
        return np.zeros(size, dtype=np.uint8)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return np.frombuffer(mmap.mmap(-1, size, **private), dtype=np.uint8)


def read_plain(stored: StoredTensor) -> Tensor:
    """The tensor as stored, for every dtype of `TORCH_DTYPES`.

    Raises:
        CheckpointError: torch has no such dtype, or as `read_bytes`.
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
