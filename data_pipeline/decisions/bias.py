"""Drop rates by skin tone, hair and body shape, where the truth is known: never inferred from a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from data_pipeline.decisions.measure import SOUND
from data_pipeline.decisions.rules import Decision
from data_pipeline.world_sources import read_truth

ATTRIBUTES = ("skin", "hair_color", "hair_style", "body_shape")
_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Rate:
    """Rows without a planted fault that have a value of an attribute, how many the rules dropped, and 95 % bounds."""

    attribute: str
    value: str
    rows: int
    dropped: int
    low: float
    high: float


def drop_rates(root: Path, decisions: Iterable[Decision]) -> list[Rate]:
    """Drop rates of sound rows of the character world, by attribute and value; bounds are Wilson's.

    A row with a planted fault is to be dropped whoever is in it, and who got which fault is chance.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for found in decisions:
        truth = read_truth(root / "sources" / found.row.source)
        if truth["fault"] not in SOUND:
            continue
        for attribute in ATTRIBUTES:
            count = counts.setdefault((attribute, truth["character"][attribute]), [0, 0])
            count[0] += 1
            count[1] += bool(found.broken)
    order = sorted(counts, key=lambda key: (ATTRIBUTES.index(key[0]), key[1]))
    rates = []
    for attribute, value in order:
        rows, dropped = counts[attribute, value]
        rates.append(Rate(attribute, value, rows, dropped, *_wilson(dropped, rows)))
    return rates


def _wilson(part: int, whole: int) -> tuple[float, float]:
    share, extra = part / whole, _Z * _Z / whole
    middle = (share + extra / 2) / (1 + extra)
    reach = _Z / (1 + extra) * sqrt(share * (1 - share) / whole + extra / (4 * whole))
    return max(0.0, middle - reach), min(1.0, middle + reach)
