"""Batches out of the cache: entries of the chosen rows, put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contextanyone_core.errors import CheckpointError, InputError
from training.data.cache import KINDS, CachedRow, CacheIndex, read_index
from training.data.named import hull_of
from training.data.settings import DataSettings
from training.data.shards import Entry, ShardStore

_LOG = logging.getLogger(__name__)

Batch = dict[str, Tensor | list[str]]


class _Entries(NamedTuple):
    """What is cached of a row; references one behind the other as frames; texts (tokens, D)."""

    clip: Entry
    reference: Entry
    target: Entry
    first: Tensor
    video: Tensor
    pose: Entry | None = None


class CachedData:
    """The rows of a manifest as the cache holds them.

    Args:
        settings: the data. hulls: whether batches have `hulls`.

    Raises:
        InputError: the manifest is not cached with these settings, or no row of it can be used.
    """

    def __init__(self, settings: DataSettings, *, hulls: bool = False) -> None:
        self.index: CacheIndex = read_index(settings)
        if not self.rows:
            raise InputError(
                f"No row of the split {settings.split} of {settings.manifest} can be used: run training/cache.py with "
                "this configuration, which says why, and mend or add rows."
            )
        self._folder, self._posed = settings.cache, settings.poses is not None
        self._hull_style = settings.poses if hulls else None
        self._stores = {kind: ShardStore(settings.cache / kind) for kind in KINDS}

    @property
    def rows(self) -> list[CachedRow]:
        """The rows, in the manifest's order."""
        return self.index.rows

    @property
    def empty_text(self) -> Tensor:
        """The empty prompt's embeddings (tokens, D), float16."""
        kept = self.index.empty_embeds()
        return self._stores["text"].read(self.index.empty)["text_embeds"] if kept is None else kept

    def image_embeds_shape(self) -> tuple[int, int] | None:
        """CLIP tokens of a reference and their width; None where the cache was made without a CLIP tower.

        Raises:
            CheckpointError: no row can be read.
        """
        for row in self.rows:
            if (found := self._read(row)) is not None:
                tokens = found.reference.get("image_embeds")
                return None if tokens is None else (tokens.shape[0] // row.bucket.references, tokens.shape[1])
        raise CheckpointError(self._nothing_to_read("can be read"))

    def longest_text(self) -> int:
        """Tokens of the longest prompt."""
        keys = {key for row in self.rows for key in _text_keys(row)} | {*self.index.prior, *self.index.elsewhere}
        return self._stores["text"].longest(keys, "text_embeds")

    def prior_texts(self, text_len: int) -> Tensor:
        """The prompts of the class (N, text_len, D), float16.

        Raises:
            CheckpointError: the disk no longer gives them.
        """
        return self._texts(self.index.prior, text_len)

    def elsewhere_texts(self, text_len: int) -> Tensor:
        """The prompts of the person in other places (N, text_len, D), float16. Raises: as `prior_texts`."""
        return self._texts(self.index.elsewhere, text_len)

    def _texts(self, keys: Sequence[str], text_len: int) -> Tensor:
        read = (self._stores["text"].read(key)["text_embeds"] for key in keys)
        return torch.stack([padded_text(text, text_len) for text in read])

    def batch(self, numbers: Sequence[int], text_len: int) -> Batch:
        """Rows of one bucket as a batch.

        Rows that the disk no longer gives are left out. Where none is left, the next of the rows that has their bucket
        and can be read replaces them.

        Returns:
            `latents` (B, 16, t, h, w), `masks` (B, 1, t, h, w), `reference_latents`, `target_latents`
            (B, 16, R, h, w), `target_masks`, `reference_masks` (B, 1, R, h, w), `image_embeds` (B, R * N, D) if there
            are any, `poses` (B, 16, t, h, w) if the settings use them, zeros for a row without, `hulls`
            (B, 1, t, h, w) if asked for, the share of each latent within the figure's hull, 1 for a row without pose,
            `first_text`, `video_text` (B, text_len, D), all float16; `ids`, and `unreadable`, the ids of rows that are
            left out. R is the number of references of each row, N of CLIP tokens of one. Where a row has no mask it
            is 1.

        Raises:
            CheckpointError: no row of the bucket can be read.
        """
        chosen = [self.rows[number] for number in numbers]
        read = [(row, entries) for row in chosen if (entries := self._read(row)) is not None]
        kept = {row.id for row, _ in read}
        unreadable = [row.id for row in chosen if row.id not in kept]
        return self._joined(read or [self._stand_in(numbers[0])], text_len) | {"unreadable": unreadable}

    def row(self, number: int, text_len: int) -> Batch | None:
        """One row as a batch; None, with a warning, where the disk no longer gives it."""
        row = self.rows[number]
        entries = self._read(row)
        return None if entries is None else self._joined([(row, entries)], text_len) | {"unreadable": []}

    def _joined(self, read: Sequence[tuple[CachedRow, _Entries]], text_len: int) -> Batch:
        entries = [found for _, found in read]
        joined = _joined(read, text_len) | ({"poses": _poses(entries)} if self._posed else {})
        style = self._hull_style
        return joined if style is None else joined | {"hulls": torch.stack([_hull(one.clip, style) for one in entries])}

    def _stand_in(self, number: int) -> tuple[CachedRow, _Entries]:
        """The next row after one, in the order of all, that has its bucket and can be read."""
        bucket = self.rows[number].bucket
        for row in (*self.rows[number + 1 :], *self.rows[:number]):
            if row.bucket == bucket and (entries := self._read(row)) is not None:
                return row, entries
        raise CheckpointError(self._nothing_to_read(f"of the bucket {bucket} can be read"))

    def _nothing_to_read(self, which: str) -> str:
        return f"No row {which} from {self._folder}: run training/cache.py with this configuration again."

    def _read(self, row: CachedRow) -> _Entries | None:
        """What is cached of a row; None, with a warning, where the disk does not give all of it."""
        stores = self._stores
        try:
            clip = stores["clip"].read(row.keys.clip)
            references = [stores["reference"].read(key) for key in row.keys.references()]
            targets = [self._target(row, clip), *references[1:]]
            first, video = (stores["text"].read(key)["text_embeds"] for key in _text_keys(row))
            pose = None if row.keys.pose is None else stores["pose"].read(row.keys.pose)
        except CheckpointError as error:
            _LOG.warning("The row %s is skipped: %s", row.id, error)
            return None
        return _Entries(clip, _behind(references), _behind(targets), first, video, pose)

    def _target(self, row: CachedRow, clip: Entry) -> Entry:
        """What the stream must reconstruct of the first reference: the row's own target, or the clip's first frame."""
        if row.keys.target is not None:
            return self._stores["target"].read(row.keys.target)
        return {name: clip[name][:, :1] for name in ("latents", "mask") if name in clip}


def padded_text(text_embeds: Tensor, text_len: int) -> Tensor:
    """Text embeddings (tokens, D) with rows of zeros up to text_len, as the model reads them.

    Raises:
        ValueError: there are more tokens.
    """
    if len(text_embeds) > text_len:
        raise ValueError(f"A cached prompt has {len(text_embeds)} tokens, the model reads {text_len}.")
    return F.pad(text_embeds, (0, 0, 0, text_len - len(text_embeds)))


def _joined(read: Sequence[tuple[CachedRow, _Entries]], text_len: int) -> Batch:
    """Rows of one bucket put together."""
    clips, references, targets, firsts, videos, _ = zip(*(entries for _, entries in read), strict=True)
    batch: Batch = {
        "latents": _stacked(clips, "latents"),
        "masks": torch.stack([_mask(clip) for clip in clips]),
        "reference_latents": _stacked(references, "latents"),
        "reference_masks": torch.stack([_mask(reference) for reference in references]),
        "target_latents": _stacked(targets, "latents"),
        "target_masks": torch.stack([_mask(target) for target in targets]),
        "first_text": torch.stack([padded_text(text, text_len) for text in firsts]),
        "video_text": torch.stack([padded_text(text, text_len) for text in videos]),
        "ids": [row.id for row, _ in read],
    }
    if "image_embeds" in references[0]:
        batch["image_embeds"] = _stacked(references, "image_embeds")
    return batch


def _poses(read: Sequence[_Entries]) -> Tensor:
    """Latents of the poses (B, 16, t, h, w); zeros, which mean that there is none, for a row without."""
    absent = torch.zeros_like(read[0].clip["latents"])
    return torch.stack([absent if entries.pose is None else entries.pose["latents"] for entries in read])


def _hull(clip: Entry, style: str) -> Tensor:
    if "pose" not in clip:
        return torch.ones_like(clip["latents"][:1])
    height, width = clip["latents"].shape[-2:]
    return hull_of(clip["pose"].float(), (8 * height, 8 * width), style)


def _behind(pictures: Sequence[Entry]) -> Entry:
    """Pictures one behind the other: `latents` and `mask` as frames, `image_embeds` as tokens."""
    if len(pictures) == 1:
        return pictures[0]
    joined = {"latents": torch.cat([entry["latents"] for entry in pictures], dim=1)}
    joined["mask"] = torch.cat([_mask(entry) for entry in pictures], dim=1)
    if all("image_embeds" in entry for entry in pictures):
        joined["image_embeds"] = torch.cat([entry["image_embeds"] for entry in pictures])
    return joined


def _text_keys(row: CachedRow) -> tuple[str, str]:
    return row.keys.first, row.keys.video


def _stacked(entries: Sequence[Entry], name: str) -> Tensor:
    return torch.stack([entry[name] for entry in entries])


def _mask(entry: Entry) -> Tensor:
    return entry["mask"] if "mask" in entry else torch.ones_like(entry["latents"][:1])
