"""Thresholds over stored scores: which rows stay, and how many would stay at another threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contextanyone_core.errors import InputError
from data_pipeline.pixels.scores import HASH_SIDE
from data_pipeline.rows import Row

DEDUP = "dedup.min_distance"
"""The rule that compares rows with one another: the share of bits that their hashes must differ by."""
_GRID = 9  # thresholds of the what-if table for each rule


@dataclass(frozen=True)
class Rule:
    """A bound of one score. Its name is the reason of what it drops: `person.min_area`."""

    stage: str
    bound: str
    value: float

    @property
    def name(self) -> str:
        """`<stage>.<bound>`."""
        return f"{self.stage}.{self.bound}"

    @property
    def score(self) -> str:
        """The score that it looks at: `<stage>.<score>`."""
        return f"{self.stage}.{self.bound[4:]}"

    def keeps(self, score: float) -> bool:
        """Whether a score is within the bound, the bound included."""
        return score >= self.value if self.bound.startswith("min_") else score <= self.value


@dataclass(frozen=True)
class Decision:
    """A row, why it does not stay ("" where it does), every rule that it breaks, and how far it is from a kept row."""

    row: Row
    reason: str
    broken: tuple[str, ...]
    nearest: float = 1.0


def rules_of(filters: dict[str, dict[str, float]], rows: Sequence[Row]) -> list[Rule]:
    """The rules of a configuration, in its order, checked against the scores that there are.

    Raises:
        InputError: a rule's score was not measured.
    """
    rules = [Rule(stage, bound, value) for stage, bounds in filters.items() for bound, value in bounds.items()]
    known = set.intersection(*(set(row.scores) for row in rows)) if rows else set()
    for rule in rules:
        if rows and rule.name != DEDUP and rule.score not in known:
            raise InputError(
                f"filters.{rule.name}: there is no score {rule.score}; known are {', '.join(sorted(known))}."
            )
    return rules


def decide(rows: Sequence[Row], rules: Sequence[Rule]) -> list[Decision]:
    """Apply every rule; the first that is broken is the reason. Duplicates are looked for among what is left."""
    single = [rule for rule in rules if rule.name != DEDUP]
    broken = [tuple(rule.name for rule in single if not rule.keeps(row.scores[rule.score])) for row in rows]
    distance = next((rule.value for rule in rules if rule.name == DEDUP), None)
    near = [1.0] * len(rows)
    if distance is not None:
        left = [number for number, names in enumerate(broken) if not names]
        for number, nearest in zip(left, nearest_before([rows[x] for x in left], distance), strict=True):
            near[number] = nearest
            if nearest < distance:
                broken[number] = (DEDUP,)
    return [Decision(row, x[0] if x else "", x, far) for row, x, far in zip(rows, broken, near, strict=True)]


def nearest_before(rows: Sequence[Row], distance: float) -> list[float]:
    """For each row the distance (0 to 1) to the nearest kept row before it; a row nearer than `distance` is not kept.

    Two rows are as far apart as the mean over their first, middle and last frames. Quadratic in the rows.
    """
    kept = np.empty((len(rows), 3 * HASH_SIDE**2 // 8), np.uint8)
    count, found = 0, []
    for row in rows:
        bits = np.frombuffer(bytes.fromhex(row.labels["hashes.frames"].replace(" ", "")), np.uint8)
        near = 1.0
        if count:
            differing = np.bitwise_count(kept[:count] ^ bits).sum(axis=1)
            near = float(differing.min()) / (3 * HASH_SIDE**2)
        if near >= distance:
            kept[count] = bits
            count += 1
        found.append(near)
    return found


def what_if(rows: Sequence[Row], rules: Sequence[Rule]) -> dict[str, list[dict[str, float]]]:
    """For each rule of one row: kept rows at nine thresholds, all other such rules as they are. No model runs."""
    single = [rule for rule in rules if rule.name != DEDUP]
    table: dict[str, list[dict[str, float]]] = {}
    for rule in single:
        others = [row for row in rows if all(x.keeps(row.scores[x.score]) for x in single if x is not rule)]
        scores = np.array([row.scores[rule.score] for row in others])
        everywhere = [row.scores[rule.score] for row in rows]
        grid = sorted({rule.value, *np.round(np.quantile(everywhere, np.linspace(0, 1, _GRID)), 6)}) if rows else []
        below = rule.bound.startswith("min_")
        table[rule.name] = [
            {"threshold": float(at), "kept": int((scores >= at).sum() if below else (scores <= at).sum())}
            for at in grid
        ]
    return table


def reasons(decisions: Sequence[Decision]) -> dict[str, int]:
    """How many rows each reason dropped, the commonest first."""
    return dict(Counter(found.reason for found in decisions if found.reason).most_common())
