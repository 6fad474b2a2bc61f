"""Means with intervals, and tests of claims about pairs of cells, over training seeds and test characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from evaluation.ablation.plan import Claim
from evaluation.significance import holm, unpaired_p

MEASURES = ("attributes", "drift", "copy", "motion")
_RESAMPLES = 4000

Values = NDArray[np.float64]
"""(seeds, characters): one measure of a cell, in the order of the test characters."""

Runs = Mapping[int, Mapping[str, Any]]
"""What is measured of a cell, by its seed."""


def values(results: Iterable[Mapping[str, Any]], measure: str) -> Values:
    """One measure of a cell's results, per seed; fractions in percent, drift and copy in percentage points."""
    if measure == "drift":
        return 100 * np.asarray([np.subtract(result["first"], result["last"]) for result in results])
    name, scale = {"attributes": ("attributes", 100), "copy": ("copied", 100), "motion": ("motion", 1)}[measure]
    return scale * np.asarray([result[name] for result in results], np.float64)


def summary(cell: Values) -> dict[str, Any]:
    """Mean, 95 % confidence interval, and the mean of each seed.

    The interval of one seed is a bootstrap over the characters, and knows nothing of other training runs. That of
    several is a t interval: a bootstrap of three seeds would be too narrow where they differ.
    """
    mean = float(cell.mean())
    if len(cell) == 1:
        low, high = np.percentile(_resampled(cell[0]), [2.5, 97.5])
    else:
        error, freedom = _standard_error(cell)
        reach = float(student.ppf(0.975, freedom)) * error
        low, high = mean - reach, mean + reach
    return {"mean": mean, "ci95": [float(low), float(high)], "seeds": cell.mean(1).tolist()}


def difference(one: Runs, other: Runs, measure: str) -> tuple[tuple[int, ...], Values] | None:
    """The seeds that both cells have, and one - other, of each seed and character; None where they share no seed.

    Runs of one seed see the same pairs in the same order, and are measured from the same noise.
    """
    seeds = tuple(seed for seed in one if seed in other)
    if not seeds:
        return None
    first, second = (values([cell[seed] for seed in seeds], measure) for cell in (one, other))
    return seeds, first - second


@dataclass(frozen=True)
class Verdict:
    """Result of testing a claim: the difference better - worse over the seeds of both, its interval, and p.

    p is the larger of the interval's and a t test's of the two cells' means by seed; of one seed it is 1.
    """

    difference: float
    ci95: tuple[float, float]
    seeds: tuple[int, ...]
    p: float
    verdict: str


def judge(claims: Sequence[Claim], cells: Mapping[str, Runs]) -> list[Verdict | None]:
    """The verdict of each claim, confirmed, refuted or open; None if its cells share no seed yet.

    p values are Holm-corrected over all claims, those that cannot be tested yet included, so that no verdict falls
    because another cell is trained. A claim with a single seed stays open, because the variance between training runs
    is unknown.
    """
    compared = [_compare(claim, cells) for claim in claims]
    decided = holm([1.0 if found is None else found.p for found in compared])
    verdicts: list[Verdict | None] = []
    for claim, found, certain in zip(claims, compared, decided, strict=True):
        if found is None:
            verdicts.append(None)
            continue
        ahead = found.difference > 0 if claim.direction == "more" else found.difference < 0
        verdict = ("confirmed" if ahead else "refuted") if certain else "open"
        verdicts.append(Verdict(found.difference, found.ci95, found.seeds, found.p, verdict))
    return verdicts


def _compare(claim: Claim, cells: Mapping[str, Runs]) -> Verdict | None:
    better, worse = (cells.get(name, {}) for name in (claim.better, claim.worse))
    found = difference(better, worse, claim.measure)
    if found is None:
        return None
    seeds, differences = found
    whole, p = summary(differences), 1.0
    if len(seeds) > 1:
        means = [values([cell[seed] for seed in seeds], claim.measure).mean(1) for cell in (better, worse)]
        p = max(_p(differences), unpaired_p(*means))
    return Verdict(whole["mean"], (whole["ci95"][0], whole["ci95"][1]), seeds, p, "")


def _p(differences: Values) -> float:
    """Two-sided p of the mean of several seeds, by the t of its interval."""
    error, freedom = _standard_error(differences)
    mean = abs(float(differences.mean()))
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * student.sf(mean / error, freedom))


def _standard_error(cell: Values) -> tuple[float, float]:
    """Standard error of the mean over seeds crossed with characters, both random, and its degrees of freedom.

    The variance is (MS of the seeds + MS of the characters - MS of the rest) / N, not below that of either alone; the
    degrees of freedom are Satterthwaite's.
    """
    count, characters = cell.shape
    of_seed, of_character, mean = cell.mean(1), cell.mean(0), cell.mean()
    rest = cell - of_seed[:, None] - of_character + mean
    squares = np.asarray(
        [
            characters * of_seed.var(ddof=1),
            count * of_character.var(ddof=1),
            (rest**2).sum() / ((count - 1) * (characters - 1)),
        ]
    )
    freedoms = np.asarray([count - 1, characters - 1, (count - 1) * (characters - 1)])
    variance = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if variance == 0:
        return 0.0, float(count - 1)
    return float(np.sqrt(variance / cell.size)), float(variance**2 / (squares**2 / freedoms).sum())


def _resampled(characters: Values) -> NDArray[np.float64]:
    """Bootstrap means over the characters of one seed, (characters,)."""
    rng, count = np.random.default_rng(0), len(characters)
    return np.asarray([characters[rng.integers(count, size=count)].mean() for _ in range(_RESAMPLES)])
