"""Means with intervals, and tests of claims about pairs of cells, by a bootstrap over training seeds and characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.ablation.plan import Claim
from evaluation.significance import bootstrap_p, holm, unpaired_p

MEASURES = ("attributes", "drift", "copy", "motion")
_RESAMPLES = 4000

Values = NDArray[np.float64]
"""(seeds, characters): one measure of a cell, in the order of the test characters."""


def values(results: Sequence[Mapping[str, Any]], measure: str) -> Values:
    """One measure of a cell's results, per seed; fractions in percent, drift and copy in percentage points."""
    if measure == "drift":
        return 100 * np.asarray([np.subtract(result["first"], result["last"]) for result in results])
    name, scale = {"attributes": ("attributes", 100), "copy": ("copied", 100), "motion": ("motion", 1)}[measure]
    return scale * np.asarray([result[name] for result in results], np.float64)


def summary(cell: Values) -> dict[str, Any]:
    """Mean, 95 % confidence interval, and the mean of each seed."""
    low, high = np.percentile(_resampled(cell), [2.5, 97.5])
    return {"mean": float(cell.mean()), "ci95": [float(low), float(high)], "seeds": cell.mean(1).tolist()}


@dataclass(frozen=True)
class Verdict:
    """Result of testing a claim: the difference better - worse with its interval, and p.

    p is the larger of the bootstrap's and a t test's of the seeds' means: a bootstrap of three is too sure of itself.
    """

    difference: float
    ci95: tuple[float, float]
    p: float
    verdict: str


def judge(claims: Sequence[Claim], cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Verdict | None]:
    """The verdict of each claim, confirmed, refuted or open; None if a cell has no result yet.

    p values are Holm-corrected over all claims. A claim about a cell with a single seed stays open, because the
    variance between training runs is unknown.
    """
    compared = [_compare(claim, cells) for claim in claims]
    decided = iter(holm([found.p for found in compared if found is not None]))
    verdicts: list[Verdict | None] = []
    for claim, found in zip(claims, compared, strict=True):
        if found is None:
            verdicts.append(None)
            continue
        single = min(len(cells[claim.better]), len(cells[claim.worse])) < 2
        ahead = found.difference > 0 if claim.direction == "more" else found.difference < 0
        verdict = ("confirmed" if ahead else "refuted") if next(decided) and not single else "open"
        verdicts.append(Verdict(found.difference, found.ci95, found.p, verdict))
    return verdicts


def _compare(claim: Claim, cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> Verdict | None:
    if not cells.get(claim.better) or not cells.get(claim.worse):
        return None
    better, worse = (values(cells[name], claim.measure) for name in (claim.better, claim.worse))
    drawn = _resampled(better, worse)
    low, high = np.percentile(drawn, [2.5, 97.5])
    p = max(bootstrap_p(drawn), unpaired_p(better.mean(1), worse.mean(1)))
    return Verdict(float(better.mean() - worse.mean()), (float(low), float(high)), p, "")


def _resampled(cell: Values, other: Values | None = None) -> NDArray[np.float64]:
    """Bootstrap means (or differences): seeds are resampled per cell, characters jointly for both cells."""
    rng, parts = np.random.default_rng(0), [cell] if other is None else [cell, other]
    count = cell.shape[1]
    drawn = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        characters = rng.integers(count, size=count)
        means = [part[rng.integers(len(part), size=len(part))][:, characters].mean() for part in parts]
        drawn[index] = means[0] if other is None else means[0] - means[1]
    return drawn
