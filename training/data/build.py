"""Filling the cache: what a manifest needs and the cache lacks is read ahead by threads and encoded in batches."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch

from contextanyone_core.errors import InputError
from training.data.buckets import Bucket
from training.data.cache import KINDS, CachedRow, CacheIndex, write_index
from training.data.check import Checked, CheckedClip, Unusable, check_files, judge
from training.data.encode import (
    Encoders,
    Prepared,
    encode_prepared,
    encode_text,
    encoder_hashes,
    prepare_clip,
    prepare_pose,
    prepare_reference,
    prepare_target,
    prompt_of,
    row_keys,
    text_key,
)
from training.data.facts import FactStore
from training.data.manifest import Drop, read_manifest, write_lines
from training.data.media import MediaError
from training.data.progress import Progress
from training.data.settings import DataSettings
from training.data.shards import Entry, ShardStore
from training.data.work import Share, in_threads, thread_count

_LOG = logging.getLogger(__name__)
SHARD_ROWS = 32  # entries in a shard: at full size about 150 MB of clips; a kill loses at most these


class CacheBuilder:
    """Encodes what a manifest needs and the cache lacks.

    Args:
        settings: the data.
        device: of the encoders.
        share: this process and how many there are; each checks and encodes its own rows.

    Raises:
        InputError: the manifest or an encoder is missing.
        Stopped: a stop was requested.
    """

    def __init__(self, settings: DataSettings, device: torch.device, share: Share | None = None) -> None:
        self.settings, self.share = settings, share or Share()
        self.encoders = Encoders(settings.encoders, device, _hashes(settings, self.share.between))
        self.manifest = read_manifest(settings.manifest).of_split(settings.split)
        self.folder = self.manifest.folder
        self.checked = check_files(self.manifest, settings.buckets, decode=False, share=self.share)
        self.keys = [row_keys(clip, self.encoders.hashes, settings.poses) for clip in self.checked.clips]
        self.empty = text_key("", self.encoders.hashes)
        self.prior = tuple(text_key(prompt, self.encoders.hashes) for prompt in settings.prior_prompts())
        self.elsewhere = tuple(text_key(prompt, self.encoders.hashes) for prompt in settings.elsewhere_prompts())
        self.stores = {kind: ShardStore(settings.cache / kind) for kind in KINDS}
        self.failed = settings.cache / "failed"

    def build(self) -> bool:
        """Encode this process's share.

        Returns:
            Whether the index could be written: all entries of all processes are there, or have failed.

        Raises:
            Stopped: a stop was requested; what is encoded by then is written.
        """
        self._verify()
        for kind in ("clip", "reference", "target", "pose"):
            self._encode_pictures(kind)
        self._encode_texts()
        return self._finish()

    def _verify(self) -> None:
        """Compare the entries of this process's rows with their checksums, and take damaged ones out."""
        for kind, store in self.stores.items():
            store.discard_unreadable()
            present = sorted({key for key in self._keys_of(kind) if key in store})
            bad = []
            with Progress(f"comparing checksums: {kind}", len(present), "entries") as progress:
                for key, whole in in_threads(store.is_whole, present, self.share, thread_count(), 16):
                    progress.advance()
                    if not whole:
                        bad.append(key)
            if bad:
                rows = [
                    clip.line.row.id
                    for clip, keys in zip(self.checked.clips, self.keys, strict=True)
                    if not set(bad).isdisjoint(keys.all())
                ]
                _LOG.warning("Damaged entries (%s) are encoded again, of the rows %s.", kind, ", ".join(rows))
                store.discard(bad)

    def _keys_of(self, kind: str) -> list[str]:
        if kind == "text":
            return list(self._prompts())
        return [key for key, _ in self._work(kind)]

    def _work(self, kind: str) -> list[tuple[str, Job]]:
        """Everything of one kind that this process's rows need, neighbours in a file one after the other."""
        work: dict[str, Job] = {}
        pairs = zip(self.checked.clips, self.keys, strict=True)
        for clip, keys in sorted(pairs, key=lambda pair: (pair[0].line.row.video, pair[0].indexes)):
            if kind == "clip":
                work[keys.clip] = Job(clip, partial(prepare_clip, self.folder, clip))
            elif kind == "target" and keys.target is not None:
                work[keys.target] = Job(clip, partial(prepare_target, self.folder, clip))
            elif kind == "pose" and keys.pose is not None and self.settings.poses is not None:
                work[keys.pose] = Job(clip, partial(prepare_pose, self.folder, clip, self.settings.poses, keys.pose))
            elif kind == "reference":
                for index, key in enumerate(keys.references()):
                    work[key] = Job(clip, partial(self._reference, clip, index))
        return list(work.items())

    def _reference(self, clip: CheckedClip, index: int) -> Prepared:
        side = None if self.encoders.image is None else self.encoders.image.image_size
        return prepare_reference(self.folder, clip, index, side)

    def _encode_pictures(self, kind: str) -> None:
        """Encode what is missing, bucket by bucket in batches; files are read and resized ahead, by threads."""
        store, by_bucket = self.stores[kind], dict[Bucket, list[tuple[str, Job]]]()
        for key, job in self._work(kind):
            if key not in store:
                bucket = job.clip.bucket if kind in ("clip", "pose") else Bucket(1, *job.clip.bucket[1:3])
                by_bucket.setdefault(bucket, []).append((key, job))
        total = sum(len(jobs) for jobs in by_bucket.values())
        if kind == "reference" and total:
            self._load(lambda: self.encoders.image)  # before the threads that ask for its size
        with Progress(f"encoding: {kind}", total, "entries") as progress, _Writer(store) as writer:
            for bucket, jobs in sorted(by_bucket.items()):
                size, threads = self.encoders.batch_size(bucket), min(4, thread_count() + 1)
                batch: list[tuple[str, Prepared]] = []
                for (key, _), found in in_threads(_prepare, jobs, self.share, threads, size):
                    if isinstance(found, Unusable):
                        self._note_failure(key, found)
                        progress.advance()
                    else:
                        batch.append((key, found))
                    if len(batch) == size:
                        self._encode(batch, writer)
                        progress.advance(len(batch))
                        batch = []
                self._encode(batch, writer)
                progress.advance(len(batch))

    def _load(self, encoder: Callable[[], object]) -> None:
        with self.share.cut():
            encoder()
        self.share.between()

    def _encode(self, batch: Sequence[tuple[str, Prepared]], writer: _Writer) -> None:
        if not batch:
            return
        made: list[Entry | Unusable] = []
        with self.share.cut():
            made = encode_prepared([prepared for _, prepared in batch], self.encoders)
        for (key, _), entry in zip(batch, made, strict=False):  # none where it was cut
            self._keep(key, entry, writer)
        self.share.between()

    def _keep(self, key: str, made: Entry | Unusable, writer: _Writer) -> None:
        if isinstance(made, Unusable):
            self._note_failure(key, made)
        else:
            self._failure(key).unlink(missing_ok=True)
            writer.add(key, made)

    def _prompts(self) -> dict[str, str]:
        """This process's prompts by key; the empty one, which a dropped text is replaced by, is among all of them."""
        texts = {"", *self.settings.prior_prompts(), *self.settings.elsewhere_prompts()}
        for line in self.manifest.lines:
            prompt = prompt_of(line.row)
            texts |= {prompt.reference_text, prompt.video_text}
        keyed = {text_key(text, self.encoders.hashes): text for text in texts}
        return {key: keyed[key] for key in sorted(keyed)[self.share.rank :: self.share.world]}

    def _encode_texts(self) -> None:
        store = self.stores["text"]
        missing = {key: text for key, text in self._prompts().items() if key not in store}
        with Progress("encoding: text", len(missing), "entries") as progress, _Writer(store) as writer:
            for key, text in missing.items():
                made: Entry | Unusable | None = None
                with self.share.cut():
                    made = _encode_text(text, self.encoders)
                if made is not None:
                    self._keep(key, made, writer)
                self.share.between()
                progress.advance()

    def _failure(self, key: str) -> Path:
        return self.failed / f"{key}.json"

    def _note_failure(self, key: str, found: Unusable) -> None:
        self.failed.mkdir(parents=True, exist_ok=True)
        write_lines(self._failure(key), [json.dumps({"reason": found.reason, "detail": str(found)})])

    def _finish(self) -> bool:
        """Write the index if nothing is missing any more."""
        checked: Checked | None = self.checked
        if self.share.world > 1:
            checked = judge(self.manifest, self.settings.buckets, FactStore(self.folder), decode=False)
        if checked is None:
            return False
        present: set[str] = set()
        for store in self.stores.values():
            store.refresh()
            present.update(store)
        rows, dropped = [], list(checked.dropped)
        for clip in checked.clips:
            keys = row_keys(clip, self.encoders.hashes, self.settings.poses)
            absent = [key for key in keys.all() if key not in present]
            failed = [self._failure(key) for key in absent if self._failure(key).is_file()]
            if len(failed) < len(absent):
                return False
            if failed:
                dropped.append(clip.line.drop(**json.loads(failed[0].read_text(encoding="utf-8"))))
            else:
                rows.append(CachedRow(clip.line.row.id, clip.bucket, keys))
        if not present.issuperset({self.empty, *self.prior, *self.elsewhere}):
            return False
        self._write_index(rows, sorted(dropped, key=lambda drop: drop.line))
        return True

    def _write_index(self, rows: Sequence[CachedRow], dropped: Sequence[Drop]) -> None:
        config = self.encoders.vae.vae.config
        mean, std = tuple(config.latents_mean), tuple(config.latents_std)
        empty = self.stores["text"].read(self.empty)["text_embeds"]
        packed = base64.b85encode(empty.numpy().tobytes()).decode()
        hashes = self.encoders.hashes
        prompts = self.prior, self.elsewhere
        found = (packed, len(empty), *prompts, self.encoders.text_len)
        index = CacheIndex(list(rows), list(dropped), hashes, self.empty, mean, std, *found)
        write_index(self.settings, index)


@dataclass(frozen=True)
class Job:
    """An entry to make: the row that needs it, and how its files are read."""

    clip: CheckedClip
    prepare: Callable[[], Prepared]


class _Writer:
    """Gathers entries into shards; what is gathered is written at the end, however that comes."""

    def __init__(self, store: ShardStore) -> None:
        self._store, self._entries = store, dict[str, Entry]()

    def add(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry
        if len(self._entries) == SHARD_ROWS:
            self._flush()

    def _flush(self) -> None:
        entries, self._entries = self._entries, {}
        self._store.write(entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()


def _prepare(job: tuple[str, Job]) -> Prepared | Unusable:
    try:
        return job[1].prepare()
    except Unusable as found:
        return found
    except (MediaError, InputError, OSError) as error:
        return Unusable("decode_error", str(error))


def _encode_text(text: str, encoders: Encoders) -> Entry | Unusable:
    try:
        return encode_text(text, encoders)
    except Unusable as found:
        return found


def _hashes(settings: DataSettings, between: Callable[[], None]) -> dict[str, str]:
    settings.cache.mkdir(parents=True, exist_ok=True)
    known = FactStore(settings.cache)
    try:
        return encoder_hashes(settings.encoders, known, between)
    finally:
        known.publish()
