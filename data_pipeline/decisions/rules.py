"""Thresholds over stored scores: which rows stay, and how many would stay at another threshold."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError
from data_pipeline.decisions.dedup import KeptHashes
from data_pipeline.rows import Row

DEDUP = "dedup.min_distance"
"""The rule that compares rows with one another: the share of bits that their hashes must differ by."""
REVIEW = "review"
"""The reason of a row that a person dropped."""
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
    """A row, why it does not stay ("" where it does), every rule that it breaks, and how far it is from a kept row.

    Attributes:
        why: what a stage that dropped it says, for people.
    """

    row: Row
    reason: str
    broken: tuple[str, ...]
    nearest: float = 1.0
    why: str = ""


@dataclass(frozen=True, eq=False)
class Decisions:
    """The decision about every row, in their order. The rows are gone through anew at each iteration.

    So a run of any size needs, beside the rows' own place, about nine bytes for each row and rule.

    Attributes:
        rows: an iterable that can be gone through again. rules: in the configuration's order.
        scores: (N, R) float64, what each rule looks at; NaN for `DEDUP`.
        broken: (N, R) bool. nearest: (N,) float64, see `Decision`.
        review: what a person decided about a row, by its number: whether it is kept.
    """

    rows: Iterable[Row]
    rules: Sequence[Rule]
    scores: NDArray[np.float64]
    broken: NDArray[np.bool_]
    nearest: NDArray[np.float64]
    review: Mapping[int, bool] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.nearest)

    def __iter__(self) -> Iterator[Decision]:
        """Each decision; a person's in place of the rules', while `broken` stays what the rules say."""
        names = [rule.name for rule in self.rules]
        for number, (row, nearest) in enumerate(zip(self.rows, self.nearest, strict=True)):
            broken = tuple(names[at] for at in np.flatnonzero(self.broken[number]))
            keep = self.review.get(number)
            reason = (broken[0] if broken else "") if keep is None else "" if keep else REVIEW
            yield Decision(row, reason, broken, float(nearest))

    def reasons(self) -> dict[str, int]:
        """How many rows each reason dropped, the commonest first."""
        if not len(self):
            return {}
        names = [*(rule.name for rule in self.rules), REVIEW, ""]
        first = np.full(len(self), len(names) - 1)
        if self.rules:
            first = np.where(self.broken.any(axis=1), self.broken.argmax(axis=1), first)
        for number, keep in self.review.items():
            first[number] = len(names) - 1 if keep else len(names) - 2
        found, where, counts = np.unique(first, return_index=True, return_counts=True)
        order = np.lexsort((where, -counts))
        return {names[found[at]]: int(counts[at]) for at in order if names[found[at]]}

    @property
    def kept(self) -> int:
        """How many rows stay."""
        return len(self) - sum(self.reasons().values())


def rules_of(filters: Mapping[str, Mapping[str, float]]) -> list[Rule]:
    """The rules of a configuration, in its order."""
    return [Rule(stage, bound, value) for stage, bounds in filters.items() for bound, value in bounds.items()]


def decide(rows: Iterable[Row], rules: Sequence[Rule], review: Mapping[str, bool] | None = None) -> Decisions:
    """Apply every rule; the first that is broken is the reason. Duplicates are looked for among what is left,
    after the review: what a person keeps has no later copy beside it, and what a person drops stands in no copy's way.

    Args:
        rows: an iterable that can be gone through again. review: whether to keep a row, by its id.

    Raises:
        InputError: a rule's score was not measured.
    """
    bound = next((rule.value for rule in rules if rule.name == DEDUP), None)
    kept = None if bound is None else KeptHashes(bound)
    scores, broken, nearest = array("d"), bytearray(), array("d")
    reviewed: dict[int, bool] = {}
    for number, row in enumerate(rows):
        values = [_score(row, rule) for rule in rules]
        breaks = [rule.name != DEDUP and not rule.keeps(value) for rule, value in zip(rules, values, strict=True)]
        near = 1.0
        keep = review.get(row.id) if review else None
        if kept is not None and bound is not None:
            if not any(breaks):
                near = kept.nearest(row)
                breaks = [rule.name == DEDUP and near < bound for rule in rules]
            if keep or (keep is None and not any(breaks)):
                kept.keep(row)
        scores.extend(values)
        broken.extend(breaks)
        nearest.append(near)
        if keep is not None:
            reviewed[number] = keep
    shape = (len(nearest), len(rules))
    return Decisions(
        rows,
        rules,
        np.frombuffer(scores, np.float64).reshape(shape),
        np.frombuffer(broken, np.bool_).reshape(shape),
        np.frombuffer(nearest, np.float64),
        reviewed,
    )


def _score(row: Row, rule: Rule) -> float:
    if rule.name == DEDUP:
        return float("nan")
    if rule.score not in row.scores:
        known = ", ".join(sorted(row.scores))
        raise InputError(f"filters.{rule.name}: {row.id} has no score {rule.score}; it has {known}.")
    return row.scores[rule.score]


def what_if(decisions: Decisions) -> dict[str, list[dict[str, float]]]:
    """For each rule of one row: kept rows at nine thresholds, all other such rules as they are. No model runs."""
    single = [number for number, rule in enumerate(decisions.rules) if rule.name != DEDUP]
    table: dict[str, list[dict[str, float]]] = {}
    for number in single:
        rule, everywhere = decisions.rules[number], decisions.scores[:, number]
        others = [other for other in single if other != number]
        scores = everywhere[~decisions.broken[:, others].any(axis=1)]
        grid: list[float] = []
        if len(everywhere):
            grid = sorted({rule.value, *np.round(np.quantile(everywhere, np.linspace(0, 1, _GRID)), 6)})
        below = rule.bound.startswith("min_")
        table[rule.name] = [
            {"threshold": float(at), "kept": int((scores >= at).sum() if below else (scores <= at).sum())}
            for at in grid
        ]
    return table
