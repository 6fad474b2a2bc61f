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
SHARES = ("attributes", "copy")
"""The measures that are shares, in percent."""
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


def summary(cell: Values, less: Values | None = None, *, share: bool = False) -> dict[str, Any]:
    """Mean, 95 % confidence interval, and the mean of each seed; of cell - less, if that is given.

    The interval of one seed is a bootstrap over the characters, and knows nothing of other training runs. That of
    several is a t interval: a bootstrap of three seeds would be too narrow where they differ.

    Args:
        less: another cell's values of the same seeds and characters.
        share: whether these are percentages of something: their interval ends at 0 and 100, as a t interval does not.
    """
    shown = cell if less is None else cell - less
    mean = float(shown.mean())
    if len(shown) == 1:
        low, high = np.percentile(_resampled(shown[0]), [2.5, 97.5])
    else:
        error, freedom = _standard_error(cell, less)
        reach = float(student.ppf(0.975, freedom)) * error
        low, high = mean - reach, mean + reach
        if share:
            low, high = max(low, 0.0), min(high, 100.0)
    return {"mean": mean, "ci95": [float(low), float(high)], "seeds": shown.mean(1).tolist()}


def of_both(one: Runs, other: Runs, measure: str) -> tuple[tuple[int, ...], Values, Values] | None:
    """The seeds that both cells have, and each cell's values of them; None where they share no seed.

    Runs of one seed see the same pairs in the same order, and are measured from the same noise.
    """
    seeds = tuple(seed for seed in one if seed in other)
    if not seeds:
        return None
    first, second = (values([cell[seed] for seed in seeds], measure) for cell in (one, other))
    return seeds, first, second


@dataclass(frozen=True)
class Verdict:
    """Result of testing a claim: the difference better - worse over the seeds of both, its interval, and p.

    p is the larger of the interval's and a t test's of the two cells' means by seed, for the former is too small where
    seeds differ most and p matters most, in the tails; of one seed it is 1.
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
    found = of_both(cells.get(claim.better, {}), cells.get(claim.worse, {}), claim.measure)
    if found is None:
        return None
    seeds, better, worse = found
    whole = summary(better, worse)
    p = _p(better, worse) if len(seeds) > 1 else 1.0
    return Verdict(whole["mean"], (whole["ci95"][0], whole["ci95"][1]), seeds, p, "")


def _p(better: Values, worse: Values) -> float:
    """Two-sided p of the difference of several seeds."""
    error, freedom = _standard_error(better, worse)
    mean = abs(float(better.mean() - worse.mean()))
    if error == 0:
        return 0.0 if mean else 1.0
    return max(float(2 * student.sf(mean / error, freedom)), unpaired_p(better.mean(1), worse.mean(1)))


def _standard_error(cell: Values, less: Values | None) -> tuple[float, float]:
    """Standard error of the mean over seeds crossed with characters, both random, and its degrees of freedom.

    The variance is (MS of the seeds + MS of the characters - MS of the rest) / N, not below that of either alone; the
    degrees of freedom are Satterthwaite's. The characters of two cells are paired; their runs count as independent, so
    that three seeds of both have four degrees of freedom and not two.
    """
    shown = cell if less is None else cell - less
    runs = [part.mean(1) for part in (cell, less) if part is not None]
    count, characters = shown.shape
    rest = shown - shown.mean(1)[:, None] - shown.mean(0) + shown.mean()
    squares = np.asarray(
        [
            characters * sum(float(means.var(ddof=1)) for means in runs),
            count * shown.mean(0).var(ddof=1),
            (rest**2).sum() / ((count - 1) * (characters - 1)),
        ]
    )
    freedoms = np.asarray([len(runs) * (count - 1), characters - 1, (count - 1) * (characters - 1)])
    variance = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if variance == 0:
        return 0.0, float(freedoms[0])
    return float(np.sqrt(variance / shown.size)), float(variance**2 / (squares**2 / freedoms).sum())


def _resampled(characters: Values) -> NDArray[np.float64]:
    """Bootstrap means over the characters of one seed, (characters,)."""
    rng, count = np.random.default_rng(0), len(characters)
    return np.asarray([characters[rng.integers(count, size=count)].mean() for _ in range(_RESAMPLES)])
