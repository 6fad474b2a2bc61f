"""A store of encoded entries in safetensors shards: written whole or not at all, found by key, checked when read.

Nothing is mapped or kept open: an entry is read from its place in its shard when it is used, and compared with the
checksum that the shard's metadata has of it. So a store may have any number of shards, and a damaged one costs the
entries that are damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from contextanyone_core.errors import CheckpointError
from contextanyone_core.weights.safetensors_file import Header, read_header
from contextanyone_core.weights.tensors import read_plain
from training.files import write_tensors

_LOG = logging.getLogger(__name__)
_CHECKSUMS = "sha256"  # name of the metadata: JSON with the checksum of each entry by key

Entry = dict[str, Tensor]


def key_of(**parts: object) -> str:
    """The key of an entry: 32 hex digits of a SHA-256 over everything that it depends on, as JSON data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class ShardStore:
    """Entries (named tensors) by key, in a folder of safetensors files whose tensors are called `<key>/<name>`.

    Several processes may write one store, each its own keys. A shard that cannot be read is reported, and its entries
    count as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: set[Path] = set()
        self._places: dict[str, Path] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._shards:
                try:
                    names = _header(path).tensors
                except CheckpointError as error:
                    _LOG.warning("A shard is left out: %s", error)
                    continue
                self._add(path, (name.partition("/")[0] for name in names))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, key: str) -> Entry:
        """The tensors of an entry.

        Raises:
            CheckpointError: the store has no such entry, or it is damaged.
        """
        path = self._place(key)
        return _read_entry(path, _header(path), key)

    def longest(self, keys: Iterable[str], name: str) -> int:
        """The largest first dimension of a tensor of those entries that can be read; 0 where there are none."""
        by_shard: defaultdict[Path, set[str]] = defaultdict(set)
        for key in keys:
            if key in self._places:
                by_shard[self._places[key]].add(f"{key}/{name}")
        longest = 0
        for path, wanted in by_shard.items():
            try:
                tensors = _header(path).tensors
            except CheckpointError:
                continue  # its rows are skipped and named when they are read
            longest = max([longest, *(tensors[full].shape[0] for full in wanted & tensors.keys())])
        return longest

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write entries as one shard, named after their keys.

        Raises:
            OSError: the disk is full or not writable; nothing appears under a shard's name.
        """
        if entries:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self.folder / f"{key_of(keys=sorted(entries))}.safetensors", entries)

    def is_whole(self, key: str) -> bool:
        """Whether an entry has its checksum."""
        try:
            self.read(key)
        except CheckpointError:
            return False
        return True

    def discard(self, keys: Iterable[str]) -> None:
        """Take damaged entries out of their shards, whose other entries stay.

        Raises:
            OSError: the disk is full or not writable.
        """
        for path in {self._places[key] for key in keys if key in self._places}:
            kept, here = {}, [key for key, place in self._places.items() if place == path]
            for key in here:
                try:
                    kept[key] = self.read(key)
                except CheckpointError:
                    del self._places[key]
            if kept:
                self._write(path, kept)
            else:
                path.unlink(missing_ok=True)
                self._shards.discard(path)

    def discard_unreadable(self) -> None:
        """Remove shards whose header cannot be read, which hold nothing any more."""
        for path in set(self.folder.glob("*.safetensors")) - self._shards:
            try:
                _header(path)
            except CheckpointError:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, entries: Mapping[str, Entry]) -> None:
        tensors = {f"{key}/{name}": tensor for key, entry in entries.items() for name, tensor in entry.items()}
        checksums = {key: checksum(entry) for key, entry in entries.items()}
        write_tensors(path, tensors, {_CHECKSUMS: json.dumps(checksums)})
        self._add(path, entries)

    def _place(self, key: str) -> Path:
        if key not in self._places:
            raise CheckpointError(f"{self.folder} has no entry {key}: run training/cache.py again.")
        return self._places[key]

    def _add(self, path: Path, keys: Iterable[str]) -> None:
        self._shards.add(path)
        for key in keys:
            self._places[key] = path


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except CheckpointError:  # whose text is for files that people download
        raise CheckpointError(f"{path} is damaged or gone: run training/cache.py again.") from None


def _read_entry(path: Path, header: Header, key: str) -> Entry:
    start = f"{key}/"
    entry = {
        name.removeprefix(start): read_plain(stored)
        for name, stored in header.tensors.items()
        if name.startswith(start)
    }
    if not entry:
        raise CheckpointError(f"{path} has no entry {key} any more: run training/cache.py again.")
    expected = _checksums(path, header).get(key)
    if expected is not None and expected != checksum(entry):  # shards of older versions have none
        raise CheckpointError(f"{path} is damaged in the entry {key}: run training/cache.py again.")
    return entry


def _checksums(path: Path, header: Header) -> dict[str, str]:
    try:
        found = json.loads(header.metadata.get(_CHECKSUMS, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged in its checksums: run training/cache.py again.")
    return found


def checksum(entry: Entry) -> str:
    """SHA-256 of an entry's tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(entry.items()):
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def half(entry: Mapping[str, Tensor]) -> Entry:
    """The tensors in float16 on the CPU, all finite.

    Raises:
        ValueError: a value is not finite in float16; the message names the tensor.
    """
    halved = {name: tensor.detach().to("cpu", torch.float16) for name, tensor in entry.items()}
    for name, tensor in halved.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is not finite in float16")
    return halved
