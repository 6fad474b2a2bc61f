"""Train, validation and test, so that no source and no identity is in two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from sys import intern

from contextanyone_core.atomic_file import write_text
from data_pipeline.models.protocols import Models
from data_pipeline.rows import Row
from training.data.manifest import Split

_VAL, _TEST = 5, 5  # per cent


def identities_of(root: Path, rows: Iterable[Row], models: Models) -> dict[str, str]:
    """The cluster of each row's person, by the row's key, from `clusters.json` where it has them all.

    Args:
        rows: an iterable that can be gone through again.

    The models embed in memory and only names of clusters are written; a run that is killed here starts this anew.
    """
    path = root / "clusters.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.keys() != {row.key for row in rows}:
        known = dict(zip((row.key for row in rows), models.identities(rows), strict=True))
        write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


def split_rows(rows: Iterable[tuple[str, str]]) -> list[Split]:
    """The split of each row: rows that share a source or an identity, also over others, have the same one.

    Args:
        rows: the source of each and its person's cluster.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    sources: list[str] = []
    for source, person in rows:
        own = intern(f"source {source}")  # one text for all rows of a source
        first, second = sorted((root(own), root(f"person {person}")))  # the smallest leads, whatever the rows' order
        parent[second] = first
        sources.append(own)
    return [_of(root(source)) for source in sources]


def _of(group: str) -> Split:
    number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % 100
    return "val" if number < _VAL else "test" if number < _VAL + _TEST else "train"
