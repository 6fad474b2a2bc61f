"""The cache of encoded rows: built once by `training/cache.py`, by any number of processes, and read in training.

    CACHE/clip|reference|target|pose|text/*.safetensors   entries by content, shared by all manifests and runs
    CACHE/failed/<key>.json                          what could not be encoded, and why
    CACHE/index-<hash>.json                          for one manifest, split and choice of buckets: which entry is what
    CACHE/.checked/                                  hashes of the encoders' files

An entry's key is a hash of the files' contents, of how they are used and of the encoder's file: after a change, only
what depends on it is encoded again. `training/data/build.py` fills it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contextanyone_core.errors import InputError
from training.data.buckets import Bucket
from training.data.encode import RowKeys, encoder_hashes
from training.data.facts import FactStore
from training.data.manifest import Drop, write_lines
from training.data.settings import DataSettings

KINDS = ("clip", "reference", "target", "pose", "text")


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
        empty_text: its embeddings, float16 as base 85, and their number of rows: without it no row could be trained on,
            so it does not hang on one shard. "" in indexes of older versions.
        latents_mean, latents_std: of the VAE.
        text_len: of the text encoder; 0 in indexes of older versions.
        prior: keys of the prompts of the class, where the settings name one. elsewhere: of those of the person.
    """

    rows: list[CachedRow]
    dropped: list[Drop]
    encoders: dict[str, str]
    empty: str
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    empty_text: str = ""
    empty_tokens: int = 0
    prior: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    text_len: int = 0

    def empty_embeds(self) -> Tensor | None:
        """The empty prompt's embeddings (tokens, D) float16, where the index holds them."""
        if not self.empty_text:
            return None
        values = np.frombuffer(base64.b85decode(self.empty_text), np.float16).copy()
        return torch.from_numpy(values).view(self.empty_tokens, -1)


def data_hash(index: CacheIndex) -> str:
    """SHA-256 of everything that training reads, and of its order."""
    data: list[object] = [row_as_data(row) for row in index.rows]
    prompts = [list(keys) for keys in (index.prior, index.elsewhere) if keys]
    return hashlib.sha256(json.dumps(data + prompts).encode()).hexdigest()


def index_path(settings: DataSettings) -> Path:
    """Where the index for these settings is: the name is a hash of the manifest, the split and the buckets.

    `budget` and `max_tokens` are no part of it: they set how many clips a step takes, and move no row.

    Raises:
        InputError: the manifest cannot be read.
    """
    try:
        digest = hashlib.sha256(settings.manifest.read_bytes())
    except OSError as error:
        raise InputError(f"The manifest {settings.manifest} cannot be read: {error.strerror}.") from None
    buckets = settings.buckets.model_copy(update={"max_tokens": None})  # as it was where indexes were written without
    chosen: list[Any] = [settings.split, buckets.model_dump(mode="json", exclude={"budget"})]
    if settings.poses is not None:
        chosen.append(settings.poses)
    chosen += [prompts for prompts in (settings.prior_prompts(), settings.elsewhere_prompts()) if prompts]
    digest.update(json.dumps(chosen, sort_keys=True).encode())
    return settings.cache / f"index-{digest.hexdigest()[:12]}.json"


def read_index(settings: DataSettings) -> CacheIndex:
    """Read the index for these settings.

    Raises:
        InputError: there is none, or an encoder's file in part.data.encoders is not the one that was used. A file that
            is not there is not missed: training needs no text encoder.
    """
    path = index_path(settings)
    own = "" if settings.split == "train" else f" and --set part.data.split={settings.split}"
    again = f"run training/cache.py with this configuration{own}"
    if not path.is_file():
        raise InputError(
            f"The split {settings.split} of {settings.manifest} is not cached in {settings.cache} with these buckets: "
            f"{again}."
        )
    index = _parse_index(json.loads(path.read_text(encoding="utf-8")))
    for name, found in encoder_hashes(settings.encoders, FactStore(settings.cache)).items():
        if index.encoders.get(name) != found:
            raise InputError(
                f"{settings.cache} was encoded by another {name} than that in {settings.encoders}: {again}."
            )
    return index


def write_index(settings: DataSettings, index: CacheIndex) -> None:
    """Write the index for these settings, whole or not at all."""
    data = asdict(index) | {"rows": [row_as_data(row) for row in index.rows]}
    write_lines(index_path(settings), [json.dumps(data)])


def _parse_index(data: dict[str, Any]) -> CacheIndex:
    rows = [CachedRow(row["id"], Bucket(*row["bucket"]), _keys(row["keys"])) for row in data["rows"]]
    dropped = [Drop(**drop) for drop in data["dropped"]]
    statistics = (tuple(data["latents_mean"]), tuple(data["latents_std"]))
    empty = data.get("empty_text", ""), data.get("empty_tokens", 0)
    prompts = [tuple(data.get(name, ())) for name in ("prior", "elsewhere")]
    given = (*statistics, *empty, *prompts, data.get("text_len", 0))
    return CacheIndex(rows, dropped, data["encoders"], data["empty"], *given)


def _keys(data: dict[str, Any]) -> RowKeys:
    return RowKeys(**data | {"more_references": tuple(data.get("more_references", ()))})


def row_as_data(row: CachedRow) -> dict[str, Any]:
    """A row for the index and for the hash of the data; what only some rows have is left out."""
    data = asdict(row)
    if row.bucket.references == 1:
        data["bucket"] = list(row.bucket[:3])
        del data["keys"]["more_references"]
    if row.keys.pose is None:
        del data["keys"]["pose"]
    return data
