"""Files of torch.save (.pth): the locations of their tensors, found without unpickling.

The structure is a pickle inside a zip archive. Its opcodes are run by an interpreter of our own that supports
dictionaries, numbers, text and tensor descriptions only; no name in the file is ever imported or called.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .naming import find_naming, is_lora
from .safetensors_file import printable
from .tensors import BITS, StoredTensor

_MAX_STRUCTURE = 100_000_000  # maximum bytes of the pickle; Wan's have less than one million
_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_LITERALS = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
})  # fmt: skip
_DEPTH = 2  # maximum nesting of a dictionary of tensors; deeper ones are an optimizer's
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_DAMAGE = (
    zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, struct.error,
    NotImplementedError, EOFError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class _Name:
    """A global name in the pickle; it is never imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: str | None
    key: str


@dataclass(frozen=True)
class _Described:
    dtype: str
    key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _RefusalError(Exception):
    """The pickle contains more than tensors."""


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a .pth file by name, without reading the data.

    The dictionary of tensors may be nested one or two levels deep under any key, such as `state_dict` or
    `generator_ema`. If there are several, the one that is a known model is taken.

    Raises:
        CheckpointError: the file is damaged, in a format before torch 1.6, compressed, calls a function, or holds
            several models (the message names their keys).
    """
    try:
        return _read(path)
    except _RefusalError as error:
        raise CheckpointError(f"{path} is refused: its pickle {error}; only plain tensors are read.") from error
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is a damaged .pth file ({reason[:200]}). Download it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read(path: Path) -> dict[str, StoredTensor]:
    entries = _entries(path)
    structure = next((name for name in entries if name.endswith("data.pkl")), None)
    if structure is None:
        raise ValueError("it holds no data.pkl")
    offset, size = entries[structure]
    if size > _MAX_STRUCTURE:
        raise ValueError(f"its structure claims {size} bytes")
    folder = structure.removesuffix("data.pkl")
    with path.open("rb") as file:
        if f"{folder}byteorder" in entries:
            file.seek(entries[f"{folder}byteorder"][0])
            if file.read(6) != b"little":
                raise ValueError("it was written on a big-endian machine")
        file.seek(offset)
        root = _interpret(file.read(size))
    described = _one_set(path, _sets(root, (), set()))
    found = {name: _stored(path, name, tensor, entries, folder) for name, tensor in described.items()}
    sizes = [info.size for info in found.values()]
    if sum(sizes) - max(sizes) > path.stat().st_size:  # two names may share one tensor
        raise ValueError("its tensors claim more bytes than it holds")
    return found


def _entries(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of the archive's members, all uncompressed."""
    total, entries = path.stat().st_size, {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
                raise ValueError("its members are compressed or encrypted, which torch.save never does")
            if info.header_offset < 0:
                raise ValueError("a member lies before the file")
            file.seek(info.header_offset)
            local = file.read(30)
            if local[:4] != b"PK\x03\x04":
                raise ValueError("a member is not where the archive says")
            names, extra = struct.unpack("<HH", local[26:30])
            offset = info.header_offset + 30 + names + extra
            if offset + info.file_size > total:
                raise ValueError("a member ends beyond the file")
            entries[info.filename] = (offset, info.file_size)
    return entries


def _sets(root: Any, keys: tuple[str, ...], seen: set[int]) -> dict[tuple[str, ...], dict[str, _Described]]:
    """Dictionaries of tensors by their path of keys, each once; the inside of one is not searched."""
    if not isinstance(root, dict) or id(root) in seen:
        return {}
    seen.add(id(root))
    found = {name: value for name, value in root.items() if isinstance(value, _Described)}
    if found or len(keys) == _DEPTH:
        return {keys: found} if found else {}
    return {place: held for key, value in root.items() for place, held in _sets(value, (*keys, key), seen).items()}


def _one_set(path: Path, sets: dict[tuple[str, ...], dict[str, _Described]]) -> dict[str, _Described]:
    """The only dictionary that is a known model; if none is known, the only dictionary."""
    if not sets:
        raise ValueError("it holds no dictionary of tensors")
    models = {keys: held for keys, held in sets.items() if find_naming(held) or is_lora(held)} or sets
    if len(models) > 1:
        listed = ", ".join(f"{printable('.'.join(keys))} ({len(held)} tensors)" for keys, held in models.items())
        chosen = "".join(f"[{key!r}]" for key in next(iter(models)))
        raise CheckpointError(
            f"{path} holds several models under the keys {listed[:600]}; save the one that is meant by itself, as by "
            f"torch.save(torch.load({path.name!r}, map_location='cpu', weights_only=True){chosen[:200]}, 'chosen.pth')."
        )
    return next(iter(models.values()))


def _stored(
    path: Path, name: str, tensor: _Described, entries: dict[str, tuple[int, int]], folder: str
) -> StoredTensor:
    begin, available = entries[f"{folder}data/{tensor.key}"]
    item = BITS[tensor.dtype] // 8
    numbers = (tensor.offset, *tensor.shape, *tensor.stride)
    if len(tensor.shape) != len(tensor.stride) or any(type(x) is not int or x < 0 for x in numbers):
        raise ValueError(f"the shape of {printable(name)} is not readable")
    elements = math.prod(tensor.shape)
    spans = ((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    extent = 1 + sum(spans) if elements else 0
    if max(extent, elements) > available // item - tensor.offset:
        raise ValueError(f"{printable(name)} is larger than its bytes")
    plain = extent == elements and tensor.stride == _strides(tensor.shape, tensor.stride)
    stride = None if plain else tensor.stride
    return StoredTensor(tensor.dtype, tensor.shape, path, begin + tensor.offset * item, extent * item, stride)


def _strides(shape: tuple[int, ...], given: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor; for dimensions of size 1, where the stride is irrelevant, the given one."""
    strides, step = [], 1
    for size, stride in zip(reversed(shape), reversed(given), strict=True):
        strides.append(stride if size == 1 else step)
        step *= size
    return tuple(reversed(strides))


def _interpret(data: bytes) -> Any:
    """Run the pickle's opcodes on our own stack; opcodes that a file of tensors does not need are refused."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        machine.step(opcode.name, argument)
    return machine.stack[-1]


class _Machine:
    """Interpreter of the few pickle opcodes that a dictionary of tensors needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._take(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("SETITEM", "SETITEMS"):
            self._set(self._marked() if name == "SETITEMS" else self._take(2))
        elif name in ("APPEND", "APPENDS"):
            items = self._marked() if name == "APPENDS" else self._take(1)
            stack[-1].extend(items)
        else:
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = self._take(2)
            stack.append(_Name(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            function, arguments = self._take(2)
            stack.append(_reduce(function, arguments))
        elif name == "BUILD":  # attributes of a dictionary, such as state_dict's _metadata, are ignored
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise _RefusalError("sets attributes of an object")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _RefusalError(f"uses the opcode {name}")

    def _take(self, number: int) -> list[Any]:
        if len(self.stack) < number:
            raise IndexError("its pickle takes more than it holds")
        items = self.stack[-number:]
        del self.stack[-number:]
        return items

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("its pickle fills what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value


def _storage(identity: Any) -> _Storage:
    word, kind, key = identity[:3]
    if word != "storage" or not isinstance(kind, _Name) or not isinstance(key, str):
        raise ValueError("a storage is not described as torch.save does")
    return _Storage(_DTYPES.get(kind.text.rpartition(".")[2]), key)


def _reduce(function: Any, arguments: Any) -> Any:
    name = function.text if isinstance(function, _Name) else type(function).__name__
    if name == "collections.OrderedDict":
        return {}
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        storage, offset, shape, stride = arguments[:4]
        dtype = storage.dtype
        if name.endswith("v3"):
            dtype = _DTYPES.get(arguments[6].text.rpartition(".")[2])
        if dtype is None:
            raise ValueError("a tensor has a dtype that this version does not know")
        return _Described(dtype, storage.key, offset, tuple(shape), tuple(stride))
    raise _RefusalError(f"asks to call {name[:80]!r}")
