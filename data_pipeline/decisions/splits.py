"""Train, validation and test, so that no source and no identity is in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data_pipeline.rows import Row
from training.data.manifest import Split

_VAL, _TEST = 5, 5  # per cent


def split_rows(rows: Sequence[Row]) -> list[Split]:
    """The split of each row: rows that share a source or an identity, also over others, have the same one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    names = [(f"source {row.source}", f"person {row.labels['person.track']}") for row in rows]
    for source, person in names:
        first, second = sorted((root(source), root(person)))  # the smallest name leads, whatever the order of rows
        parent[second] = first
    return [_of(root(source)) for source, _ in names]


def _of(group: str) -> Split:
    number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % 100
    return "val" if number < _VAL else "test" if number < _VAL + _TEST else "train"
