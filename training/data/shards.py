"""A store of encoded entries in safetensors shards: written whole or not at all, found by key."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from contextanyone_core.errors import CheckpointError
from training.files import write_tensors

_LOG = logging.getLogger(__name__)

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
        self._files: dict[Path, Any] = {}
        self._places: dict[str, tuple[Path, list[str]]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._files:
                self._add(path)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, key: str) -> Entry:
        """The tensors of an entry.

        Raises:
            CheckpointError: the store has no such entry.
        """
        path, names = self._place(key)
        return {name: self._files[path].get_tensor(f"{key}/{name}") for name in names}

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """The shape of a tensor of an entry, of which nothing else is read.

        Raises:
            CheckpointError: the store has no such entry.
        """
        path, _ = self._place(key)
        return tuple(self._files[path].get_slice(f"{key}/{name}").get_shape())

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write entries as one shard, named after their keys.

        Raises:
            OSError: the disk is full or not writable; nothing appears under a shard's name.
        """
        if not entries:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key_of(keys=sorted(entries))}.safetensors"
        write_tensors(
            path, {f"{key}/{name}": tensor for key, entry in entries.items() for name, tensor in entry.items()}
        )
        self._add(path)

    def _place(self, key: str) -> tuple[Path, list[str]]:
        if key not in self._places:
            raise CheckpointError(f"{self.folder} has no entry {key}: run training/cache.py again.")
        return self._places[key]

    def _add(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            names = list(file.keys())
        except (SafetensorError, OSError) as error:
            _LOG.warning("%s is damaged and left out: %s", path, error)
            return
        self._files[path] = file
        for full in names:
            key, _, name = full.partition("/")
            known_path, known = self._places.setdefault(key, (path, []))
            if known_path == path:
                known.append(name)


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
