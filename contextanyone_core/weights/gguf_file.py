"""GGUF files: the header is parsed here, bounded by the file's size; the gguf package (an extra) dequantises values."""

from __future__ import annotations

import importlib
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..late_import import missing
from .safetensors_file import printable
from .tensors import StoredTensor, empty, read_bytes

# ggml's type number -> name (safetensors' if torch has the type), elements per block, bytes per block.
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip
_NUMBERS = {name: number for number, (name, block, _) in _TYPES.items() if block > 1}
_SIMPLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_ARRAY = 16  # longer arrays are skipped: they belong to tokenizers
_SHAPE = "comfy.gguf.orig_shape."  # where ComfyUI-GGUF stores shapes of more than four dimensions
_PATCH = (1, 2, 2)  # latent frames, rows and columns per patch in every published Wan model
_CHUNK = 4_000_000  # elements dequantised at a time


class _Reader:
    """Reads little-endian values from a file, and never past its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.left = size

    def take(self, number: int) -> bytes:
        if number > self.left:
            raise ValueError("its header ends too early")
        self.left -= number
        return self.file.read(number)

    def skip(self, number: int) -> None:
        if number > self.left:
            raise ValueError("its header ends too early")
        self.left -= number
        self.file.seek(number, 1)

    def value(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.value("Q")).decode("utf-8")

    def setting(self, kind: int) -> Any:
        """The next value of the header; None for an array that is too long to be needed."""
        if kind == _STRING:
            return self.text()
        if kind in _SIMPLE:
            return self.value(_SIMPLE[kind])
        if kind != _ARRAY:
            raise ValueError(f"a setting has the unknown type {kind}")
        inner, number = self.value("I"), self.value("Q")
        if inner != _STRING and inner not in _SIMPLE:
            raise ValueError(f"an array has the unknown type {inner}")
        if number <= _MAX_ARRAY:
            return [self.setting(inner) for _ in range(number)]
        if inner == _STRING:
            for _ in range(number):  # ends at the end of the file at the latest: each takes eight bytes
                self.skip(self.value("Q"))
        else:
            self.skip(number * struct.calcsize(f"<{_SIMPLE[inner]}"))
        return None


def read_gguf_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of a GGUF file by name, with dimensions in torch's order, and the file's metadata as text.

    Raises:
        CheckpointError: the file is damaged, or uses an unknown quantisation.
    """
    try:
        with path.open("rb") as file:
            return _read(path, _Reader(file, path.stat().st_size))
    except (ValueError, struct.error, OverflowError) as error:
        raise CheckpointError(f"{path} is a damaged GGUF file ({error}). Download it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read(path: Path, reader: _Reader) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    total = reader.left
    magic, version = reader.take(4), reader.value("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"its version is {version}, known are 2 and 3")
    tensors, settings = reader.value("Q"), reader.value("Q")
    values: dict[str, Any] = {}
    for _ in range(settings):
        name = reader.text()
        values[name] = reader.setting(reader.value("I"))
    entries = [_entry(reader) for _ in range(tensors)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise ValueError("its alignment is no number")
    data = -(-(total - reader.left) // alignment) * alignment
    found = {name: _stored(path, data, entry, values.get(_SHAPE + name)) for name, *entry in entries}
    if len(found) != len(entries):
        raise ValueError("a name stands twice")
    found |= _patches(found)
    sizes = sum(info.size for info in found.values())
    if any(info.offset + info.size > total for info in found.values()) or sizes > total:
        raise ValueError("its tensors need more bytes than it holds")
    return found, {name: str(value) for name, value in values.items() if value is not None}


def _entry(reader: _Reader) -> tuple[str, list[int], int, int]:
    name, sides = reader.text(), reader.value("I")
    if sides > 8:
        raise ValueError(f"{printable(name)} has {sides} sides")
    return name, [reader.value("Q") for _ in range(sides)], reader.value("I"), reader.value("Q")


def _stored(path: Path, data: int, entry: list[Any], original: Any) -> StoredTensor:
    sides, number, offset = entry
    if number not in _TYPES:
        raise CheckpointError(
            f"{path} holds tensors of ggml's type {number}, which this version cannot read; "
            f"known are {', '.join(name for name, *_ in _TYPES.values())}."
        )
    dtype, block, size = _TYPES[number]
    elements = math.prod(sides)
    if elements % block or (sides and sides[0] % block):
        raise ValueError(f"a row of {sides[:1]} elements is no multiple of {dtype}'s block of {block}")
    shape = tuple(reversed(sides))
    if isinstance(original, list):
        shape = tuple(int(side) for side in original)
    if math.prod(shape) != elements or any(side < 0 for side in shape):
        raise ValueError("a shape does not fit its tensor")
    return StoredTensor(dtype, shape, path, data + offset, elements // block * size)


def _patches(found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Restore the 5-d shape of Wan's patch embeddings: ggml's tensors are at most 4-d; not all writers store theirs."""
    restored = {}
    for name, info in found.items():
        bias = found.get(f"{name.removesuffix('weight')}bias")
        if not name.endswith("patch_embedding.weight") or len(info.shape) == 5 or bias is None or not all(bias.shape):
            continue
        width = math.prod(bias.shape)
        channels, rest = divmod(math.prod(info.shape), width * math.prod(_PATCH))
        if not rest:
            restored[name] = replace(info, shape=(width, channels, *_PATCH))
    return restored


def is_quantised(stored: StoredTensor) -> bool:
    """Whether reading the tensor needs the gguf package."""
    return stored.dtype in _NUMBERS


def unpack(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A quantised tensor's values in `dtype`, dequantised in chunks to limit memory.

    Raises:
        MissingDependencyError: the gguf package is not installed.
        CheckpointError: the file cannot be read.
    """
    try:
        quants = importlib.import_module("gguf.quants")
        kind = importlib.import_module("gguf").GGMLQuantizationType(_NUMBERS[stored.dtype])
    except ModuleNotFoundError as error:
        raise missing(f"{stored.file.name} (quantised as {stored.dtype})", "gguf") from error
    if not stored.size:
        return empty(stored.shape, dtype)
    _, block, size = _TYPES[_NUMBERS[stored.dtype]]
    packed = read_bytes(stored).view(-1, size)
    out = empty((packed.shape[0], block), dtype)
    step = max(_CHUNK // block, 1)
    for start in range(0, packed.shape[0], step):
        with np.errstate(all="ignore"):  # damaged values become NaN, which every loader rejects
            piece = quants.dequantize(packed[start : start + step].numpy(), kind)
        out[start : start + step] = torch.from_numpy(piece)
    return out.view(stored.shape)
