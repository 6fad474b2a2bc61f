"""A weight file or folder in any format as one table of stored tensors: safetensors (single or sharded), .pth, GGUF."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .gguf_file import read_gguf_file
from .safetensors_file import printable, read_header, require_file
from .saved_header import restore_header
from .tensors import StoredTensor
from .torch_file import read_torch_file

_INDEX = ".safetensors.index.json"
_MAX_INDEX = 100_000_000  # bytes


@dataclass(frozen=True)
class Container:
    """The stored tensors under their names in the file, and the header's metadata.

    Attributes:
        path: the path that was opened.
        form: "safetensors", "safetensors in 3 shards", "a .pth of torch.save" or "GGUF".
        tensors: stored tensors by name; their data is not read.
        metadata: text entries of the header; empty for .pth.
        size: total bytes of all files.
    """

    path: Path
    form: str
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    size: int


def open_container(path: str | Path) -> Container:
    """Open a weight file, an index of shards, or a folder with one of them; only headers are read.

    Raises:
        CheckpointError: the file is missing, damaged, or in a format that holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    require_file(path)
    if path.name.endswith(_INDEX):
        return _open_shards(path, path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
        size = path.stat().st_size
    except OSError:
        start, size = b"", 0  # read_header reports what is wrong
    if start.startswith(b"PK\x03\x04") and start[8:9] != b"{":
        return Container(path, "a .pth of torch.save", read_torch_file(path), {}, size)
    if start.startswith(b"GGUF") and start[8:9] != b"{":
        return Container(path, "GGUF", *read_gguf_file(path), size)
    header = read_header(path)
    return Container(path, "safetensors", *restore_header(path, header.tensors, header.metadata), size)


def _open_folder(folder: Path) -> Container:
    indexes, files = sorted(folder.glob(f"*{_INDEX}")), sorted(folder.glob("*.safetensors"))
    if len(indexes) == 1:
        return _open_shards(folder, indexes[0])
    if len(files) == 1 and not indexes:
        found = open_container(files[0])
        return Container(folder, found.form, found.tensors, found.metadata, found.size)
    if (folder / "model_index.json").is_file():
        parts = ", ".join(sorted(child.name for child in folder.iterdir() if child.is_dir())[:12])
        raise CheckpointError(f"{folder} is a whole diffusers pipeline; give one of its folders: {parts}.")
    several = indexes or files
    held = ", ".join(file.name for file in several[:6]) if several else "none"
    raise CheckpointError(
        f"{folder} is a folder with {len(several)} weight files ({held}); give one file, or a folder with one model."
    )


def _open_shards(path: Path, index: Path) -> Container:
    names = _weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    size = 0
    shards = sorted(set(names.values()))
    for shard in shards:
        header = read_header(index.parent / shard)
        if twice := tensors.keys() & header.tensors.keys():
            raise CheckpointError(f"{index} is damaged: {printable(min(twice))} stands in two of its shards.")
        tensors |= header.tensors
        metadata |= header.metadata
        size += (index.parent / shard).stat().st_size
    lost = [name for name, shard in names.items() if name not in tensors or tensors[name].file.name != shard]
    if lost:
        raise CheckpointError(
            f"{index} is damaged: {len(lost)} tensors, such as {printable(lost[0])}, are not in the shards it names."
        )
    return Container(path, f"safetensors in {len(shards)} shards", tensors, metadata, size)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError("too large")
        content = json.loads(index.read_bytes())
        names = content["weight_map"]
        shards = set(names.values())
    except FileNotFoundError as error:
        raise CheckpointError(f"{index} does not exist; give the path of an index of shards.") from error
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: it is no index of shards with a weight_map.") from error
    if not shards or not all(isinstance(name, str) and name == Path(name).name for name in shards):
        raise CheckpointError(f"{index} is damaged: its shards must be files in its own folder.")
    return dict(names)
