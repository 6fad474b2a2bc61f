"""The cache of encoded rows: built once by `training/cache.py`, by any number of processes, and read in training.

    CACHE/clip|reference|target|text/*.safetensors   entries by content, shared by all manifests and runs
    CACHE/failed/<key>.json                          what could not be encoded, and why
    CACHE/index-<hash>.json                          for one manifest, split and choice of buckets: which entry is what

An entry's key is a hash of the files' contents, of how they are used and of the encoder's file: whatever changes, only
what depends on it is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from contextanyone_core.errors import InputError
from contextanyone_core.prompts import TwoStagePrompt
from training.data.buckets import Bucket
from training.data.check import CheckedClip, Unusable, check_files
from training.data.encode import (
    Encoders,
    RowKeys,
    encode_clip,
    encode_reference,
    encode_target,
    encode_text,
    encoder_hashes,
    row_keys,
    text_key,
)
from training.data.manifest import Drop, read_manifest, write_lines
from training.data.media import MediaError
from training.data.settings import DataSettings
from training.data.shards import Entry, ShardStore

_LOG = logging.getLogger(__name__)
_KINDS = ("clip", "reference", "target", "text")
SHARD_ROWS = 32  # entries in a shard: at full size about 150 MB of clips; a kill loses at most these

Make = Callable[[], Entry]


@dataclass(frozen=True)
class CachedRow:
    """One row that can be trained on: its id, bucket, and the keys of what is encoded of it."""

    id: str
    bucket: Bucket
    keys: RowKeys


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds of one manifest.

    Attributes:
        rows: in the manifest's order. dropped: every row that is not among them.
        encoders: SHA-256 of the encoders' files, by name.
        empty: key of the empty prompt, which a dropped text is replaced by.
        latents_mean, latents_std: of the VAE.
    """

    rows: list[CachedRow]
    dropped: list[Drop]
    encoders: dict[str, str]
    empty: str
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]


def data_hash(index: CacheIndex) -> str:
    """SHA-256 of everything that training reads, and of its order."""
    return hashlib.sha256(json.dumps([asdict(row) for row in index.rows]).encode()).hexdigest()


def index_path(settings: DataSettings) -> Path:
    """Where the index for these settings is: the name is a hash of the manifest, the split and the buckets.

    `budget` and `max_tokens` are no part of it: they say how many clips a step takes, and move no row.

    Raises:
        InputError: the manifest cannot be read.
    """
    try:
        digest = hashlib.sha256(settings.manifest.read_bytes())
    except OSError as error:
        raise InputError(f"The manifest {settings.manifest} cannot be read: {error.strerror}.") from None
    buckets = settings.buckets.model_copy(update={"max_tokens": None})  # as it was where indexes were written without
    chosen = [settings.split, buckets.model_dump(mode="json", exclude={"budget"})]
    digest.update(json.dumps(chosen, sort_keys=True).encode())
    return settings.cache / f"index-{digest.hexdigest()[:12]}.json"


def read_index(settings: DataSettings) -> CacheIndex:
    """Read the index for these settings.

    Raises:
        InputError: there is none, or an encoder's file in part.data.encoders is not the one that was used. A file that
            is not there is not missed: training needs no text encoder.
    """
    path = index_path(settings)
    again = "run training/cache.py with this configuration"
    if not path.is_file():
        raise InputError(f"{settings.manifest} is not cached in {settings.cache} with these buckets: {again}.")
    index = _parse_index(json.loads(path.read_text(encoding="utf-8")))
    for name, found in encoder_hashes(settings.encoders).items():
        if index.encoders.get(name) != found:
            raise InputError(
                f"{settings.cache} was encoded by another {name} than that in {settings.encoders}: {again}."
            )
    return index


def _parse_index(data: dict[str, Any]) -> CacheIndex:
    rows = [CachedRow(row["id"], Bucket(*row["bucket"]), RowKeys(**row["keys"])) for row in data["rows"]]
    dropped = [Drop(**drop) for drop in data["dropped"]]
    statistics = (tuple(data["latents_mean"]), tuple(data["latents_std"]))
    return CacheIndex(rows, dropped, data["encoders"], data["empty"], *statistics)


class CacheBuilder:
    """Encodes what a manifest needs and the cache lacks.

    Args:
        settings: the data.
        device: of the encoders.
        rank, world: this process and how many there are; each encodes its own share of the entries.

    Raises:
        InputError: the manifest or an encoder is missing.
    """

    def __init__(self, settings: DataSettings, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.settings, self.rank, self.world = settings, rank, world
        self.encoders = Encoders(settings.encoders, device)
        manifest = read_manifest(settings.manifest).of_split(settings.split)
        self.folder = manifest.folder
        self.checked = check_files(manifest, settings.buckets, decode=False)
        self.keys = [row_keys(clip, self.encoders.hashes) for clip in self.checked.clips]
        self.empty = text_key("", self.encoders.hashes)
        self.stores = {kind: ShardStore(settings.cache / kind) for kind in _KINDS}
        self.failed = settings.cache / "failed"

    def build(self, asked_to_stop: Callable[[], bool] = lambda: False) -> bool:
        """Encode this process's share, until all of it is there or a stop is asked for.

        Returns:
            Whether the index could be written: all entries of all processes are there, or have failed.
        """
        for kind in _KINDS:
            self._encode_kind(kind, self._work(kind), asked_to_stop)
            if asked_to_stop():
                return False
        return self._finish()

    def _work(self, kind: str) -> dict[str, Make]:
        """Everything of one kind that the manifest needs, by key."""
        work: dict[str, Make] = {}
        for clip, keys in zip(self.checked.clips, self.keys, strict=True):
            if kind == "clip":
                work[keys.clip] = partial(encode_clip, self.folder, clip, self.encoders)
            elif kind == "reference":
                work[keys.reference] = partial(encode_reference, self.folder, clip, self.encoders)
            elif kind == "target" and keys.target is not None:
                work[keys.target] = partial(encode_target, self.folder, clip, self.encoders)
            elif kind == "text":
                for prompt in _prompts(clip):
                    work[text_key(prompt, self.encoders.hashes)] = partial(encode_text, prompt, self.encoders)
        if kind == "text":
            work[self.empty] = partial(encode_text, "", self.encoders)
        return work

    def _encode_kind(self, kind: str, work: dict[str, Make], asked_to_stop: Callable[[], bool]) -> None:
        store, entries = self.stores[kind], dict[str, Entry]()
        mine = [key for key in sorted(work)[self.rank :: self.world] if key not in store]
        if mine:
            _LOG.info("Encoding %d of %d: %s", len(mine), len(work), kind)
        for key in tqdm(mine, desc=kind, unit="entry", disable=None):
            try:
                entries[key] = work[key]()
                self._failure(key).unlink(missing_ok=True)
            except Unusable as found:
                self._note_failure(key, found.reason, str(found))
            except (MediaError, InputError, OSError) as error:
                self._note_failure(key, "decode_error", str(error))
            if len(entries) == SHARD_ROWS or asked_to_stop():
                store.write(entries)
                entries = {}
            if asked_to_stop():
                return
        store.write(entries)

    def _failure(self, key: str) -> Path:
        return self.failed / f"{key}.json"

    def _note_failure(self, key: str, reason: str, detail: str) -> None:
        self.failed.mkdir(parents=True, exist_ok=True)
        write_lines(self._failure(key), [json.dumps({"reason": reason, "detail": detail})])

    def _finish(self) -> bool:
        """Write the index if nothing is missing any more."""
        present: set[str] = set()
        for store in self.stores.values():
            store.refresh()
            present.update(store)
        rows, dropped = [], list(self.checked.dropped)
        for clip, keys in zip(self.checked.clips, self.keys, strict=True):
            absent = [key for key in keys.all() if key not in present]
            failed = [self._failure(key) for key in absent if self._failure(key).is_file()]
            if len(failed) < len(absent):
                return False
            if failed:
                dropped.append(clip.line.drop(**json.loads(failed[0].read_text(encoding="utf-8"))))
            else:
                rows.append(CachedRow(clip.line.row.id, clip.bucket, keys))
        if self.empty not in present:
            return False
        self._write_index(rows, sorted(dropped, key=lambda drop: drop.line))
        return True

    def _write_index(self, rows: Sequence[CachedRow], dropped: Sequence[Drop]) -> None:
        config = self.encoders.vae.vae.config
        mean, std = tuple(config.latents_mean), tuple(config.latents_std)
        index = CacheIndex(list(rows), list(dropped), self.encoders.hashes, self.empty, mean, std)
        write_lines(index_path(self.settings), [json.dumps(asdict(index))])


def _prompts(clip: CheckedClip) -> tuple[str, str]:
    row = clip.line.row
    prompt = TwoStagePrompt(row.prompt_first, row.prompt_later)
    return prompt.reference_text, prompt.video_text
