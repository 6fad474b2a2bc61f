"""Batches out of the cache: entries of the chosen rows, put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from contextanyone_core.errors import CheckpointError, InputError
from training.data.cache import CachedRow, CacheIndex, read_index
from training.data.settings import DataSettings
from training.data.shards import Entry, ShardStore

_LOG = logging.getLogger(__name__)

Batch = dict[str, Tensor | list[str]]


class CachedData:
    """The rows of a manifest as the cache holds them.

    Args:
        settings: the data.

    Raises:
        InputError: the manifest is not cached with these settings, or no row of it can be used.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.index: CacheIndex = read_index(settings)
        if not self.rows:
            raise InputError(
                f"No row of the split {settings.split} of {settings.manifest} can be used: run training/cache.py with "
                "this configuration, which says why, and mend or add rows."
            )
        kinds = ("clip", "reference", "target", "text")
        self._stores = {kind: ShardStore(settings.cache / kind) for kind in kinds}

    @property
    def rows(self) -> list[CachedRow]:
        """The rows, in the manifest's order."""
        return self.index.rows

    @property
    def empty_text(self) -> Tensor:
        """The empty prompt's embeddings (tokens, D), float16."""
        return self._stores["text"].read(self.index.empty)["text_embeds"]

    def image_embeds_shape(self) -> tuple[int, int] | None:
        """CLIP tokens of a reference and their width; None where the cache was made without a CLIP tower."""
        tokens = self._stores["reference"].read(self.rows[0].keys.reference).get("image_embeds")
        return None if tokens is None else (tokens.shape[0], tokens.shape[1])

    def batch(self, numbers: Sequence[int], text_len: int) -> Batch:
        """Rows of one bucket as a batch.

        Returns:
            `latents` (B, 16, t, h, w), `masks` (B, 1, t, h, w), `reference_latents`, `target_latents`
            (B, 16, 1, h, w), `target_masks`, `reference_masks` (B, 1, 1, h, w), `image_embeds` (B, N, D) if there are
            any, `first_text`, `video_text` (B, text_len, D), all float16; `ids`, and `unreadable`, the ids of rows that
            are left out because the disk no longer gives them. Where a row has no mask it is 1.

        Raises:
            CheckpointError: none of the rows can be read.
        """
        chosen = [self.rows[number] for number in numbers]
        found = {row.id: entries for row in chosen if (entries := self._read(row)) is not None}
        rows = [row for row in chosen if row.id in found]
        if not rows:
            raise CheckpointError(f"No row of a batch can be read: {', '.join(row.id for row in chosen)}.")
        clips, references, targets = zip(*(found[row.id] for row in rows), strict=True)
        first, video = (
            [self._text(key, text_len) for key in keys] for keys in zip(*map(_text_keys, rows), strict=True)
        )
        batch: Batch = {
            "latents": _stacked(clips, "latents"),
            "masks": torch.stack([_mask(clip) for clip in clips]),
            "reference_latents": _stacked(references, "latents"),
            "reference_masks": torch.stack([_mask(reference) for reference in references]),
            "target_latents": _stacked(targets, "latents"),
            "target_masks": torch.stack([_mask(target) for target in targets]),
            "first_text": torch.stack(first),
            "video_text": torch.stack(video),
            "ids": [row.id for row in rows],
            "unreadable": [row.id for row in chosen if row.id not in found],
        }
        return batch | (
            {"image_embeds": _stacked(references, "image_embeds")} if "image_embeds" in references[0] else {}
        )

    def _read(self, row: CachedRow) -> tuple[Entry, Entry, Entry] | None:
        """Clip, reference and target of a row; None, with a warning, where the disk does not give them."""
        try:
            clip = self._stores["clip"].read(row.keys.clip)
            return clip, self._stores["reference"].read(row.keys.reference), self._target(row, clip)
        except (CheckpointError, SafetensorError, OSError) as error:
            _LOG.warning("The row %s is skipped: %s", row.id, error)
            return None

    def _target(self, row: CachedRow, clip: Entry) -> Entry:
        """What the reference stream must say: the row's own target, or the clip's first frame."""
        if row.keys.target is not None:
            return self._stores["target"].read(row.keys.target)
        return {name: clip[name][:, :1] for name in ("latents", "mask") if name in clip}

    def _text(self, key: str, text_len: int) -> Tensor:
        return padded_text(self._stores["text"].read(key)["text_embeds"], text_len)


def padded_text(text_embeds: Tensor, text_len: int) -> Tensor:
    """Text embeddings (tokens, D) with rows of zeros up to text_len, as the model reads them.

    Raises:
        ValueError: there are more tokens.
    """
    if len(text_embeds) > text_len:
        raise ValueError(f"A cached prompt has {len(text_embeds)} tokens, the model reads {text_len}.")
    return F.pad(text_embeds, (0, 0, 0, text_len - len(text_embeds)))


def _text_keys(row: CachedRow) -> tuple[str, str]:
    return row.keys.first, row.keys.video


def _stacked(entries: Sequence[Entry], name: str) -> Tensor:
    return torch.stack([entry[name] for entry in entries])


def _mask(entry: Entry) -> Tensor:
    return entry["mask"] if "mask" in entry else torch.ones_like(entry["latents"][:1])
