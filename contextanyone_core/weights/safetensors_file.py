"""safetensors headers, validated against the file's size before any tensor is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .tensors import BITS, StoredTensor

_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, such as a .pth or .pt file of torch.save"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer; the weights themselves were not downloaded"),
    (b"<", "a web page or XML text, so the download probably failed"),
    (b"\x80", "a Python pickle, which may run code and is never opened"),
)


@dataclass(frozen=True)
class Header:
    """A file's header; `kind` is None and `config` empty if the file does not state them."""

    kind: str | None
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """Read and validate a header without reading tensors: sizes, offsets and dtypes must be consistent with the file.

    Raises:
        CheckpointError: the file is missing, damaged, or not safetensors; the message names what was found.
    """
    path = Path(path)
    table = _read_table(path)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} is damaged: the metadata in its header is not text. Download it again.")
    tensors = _check_tensors(path, table)
    return Header(metadata.get("kind"), stated_config(path, metadata), tensors, metadata)


def stated_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The config in a file's header; empty if there is none.

    Raises:
        CheckpointError: the config is not a JSON object.
    """
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: the config in its header is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged: the config in its header is not a JSON object.")
    return config


def require_file(path: Path) -> None:
    """Refuse a path that exists and is not a regular file: opening a pipe would block.

    Raises:
        CheckpointError: naming what was found.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .safetensors file inside it.")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file but a pipe or a device; give a weight file.")


def printable(name: str) -> str:
    """A tensor's name in quotes, with control characters escaped."""
    return f"'{name}'" if name.isprintable() else repr(name)


def _read_table(path: Path) -> dict[str, Any]:
    require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            _refuse_foreign(path, start, size)
            length = int.from_bytes(start[:8], "little")
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path} is no safetensors file, or a truncated one: its header claims {length} bytes, "
                    f"the file has {size}. Download it again."
                )
            file.seek(8)
            table = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give the path of a weight file.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a damaged one: its header is not JSON.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is not a JSON object.")
    return table


def _refuse_foreign(path: Path, start: bytes, size: int) -> None:
    needed = "a .safetensors file is needed"
    if size == 0:
        raise CheckpointError(f"{path} is empty; {needed}.")
    if size < 10:
        raise CheckpointError(f"{path} has only {size} bytes, too few for any weights; {needed}.")
    if start[8:9] == b"{":  # safetensors: eight bytes with the length, then JSON
        return
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {what}; {needed}.")


def _check_tensors(path: Path, table: dict[str, Any]) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    tensors = {}
    for name, entry in table.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            fits = whole and (end - begin) * 8 == math.prod(shape) * BITS[dtype]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged: the entry of {printable(name)} in its header is not readable."
            ) from error
        if not fits:
            raise CheckpointError(
                f"{path} is damaged: {printable(name)} does not fill the bytes that its header gives it."
            )
        tensors[name] = StoredTensor(dtype, shape, path, data + begin, end - begin)
    position = data
    for begin, end, name in sorted((info.offset, info.offset + info.size, name) for name, info in tensors.items()):
        if begin != position:
            raise CheckpointError(
                f"{path} is damaged: {printable(name)} overlaps another tensor or leaves a hole before it."
            )
        position = end
    if position != size:
        raise CheckpointError(
            f"{path} is {'truncated' if position > size else 'damaged'}: its tensors need {position - data} bytes, "
            f"the file holds {size - data}. Download it again."
        )
    return tensors
