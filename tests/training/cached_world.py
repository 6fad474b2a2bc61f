"""A few clips of the character world as a manifest, and its cache by the tiny encoders: what several tests read."""

import json
from pathlib import Path

import torch

from training.data.buckets import BucketSettings
from training.data.build import CacheBuilder
from training.data.manifest import ManifestRow, read_manifest, write_manifest
from training.data.settings import DataSettings
from training.data.work import Share
from training.data.world import WorldSettings, write_world

BUCKETS = BucketSettings(sizes=("32x32", "48x32"), frames=(1, 5), budget=2.0)


def write_small_world(folder: Path, count: int = 4) -> Path:
    """Clips of 6 frames, 48 x 32, with prompts that fit the tiny text encoder. Returns the manifest."""
    path = write_world(folder, WorldSettings(count, 6, (32, 48), 7))
    change_rows(path, lambda row: row | {"prompt_first": f"A {row['id']}.", "prompt_later": "Waving."})
    return path


def change_rows(path: Path, change) -> None:
    """Write a manifest anew with each row, as a dictionary, passed through `change`; None leaves a row out."""
    rows = [change(json.loads(line.row.model_dump_json())) for line in read_manifest(path).lines]
    write_manifest(path, [ManifestRow.model_validate_json(json.dumps(row)) for row in rows if row is not None])


def settings_for(manifest: Path, encoders: Path, **changes) -> DataSettings:
    """Data settings of a manifest, with a cache beside it."""
    given = {"manifest": manifest, "cache": manifest.parent.parent / "cache", "encoders": encoders, "buckets": BUCKETS}
    return DataSettings(**given | changes)


def build(settings: DataSettings, rank: int = 0, world: int = 1) -> bool:
    """Encode one process's share."""
    return CacheBuilder(settings, torch.device("cpu"), Share(rank, world)).build()
