"""Means with intervals, and paired comparisons of systems: a bootstrap over references, corrected by Holm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from evaluation.metrics.catalogue import Metric
from evaluation.significance import bootstrap_p, holm, paired_p

DRAWS = 10_000

Values = Mapping[str, float]
"""One metric of one system: a number for each item's id."""


@dataclass(frozen=True)
class Summary:
    """The mean of a metric over items, with a 95 % interval over references; none of a single reference."""

    mean: float
    low: float | None
    high: float | None
    items: int
    references: int


@dataclass(frozen=True)
class Comparison:
    """The mean of first - second over the items that both have, its interval, p, and which one is better.

    `better` is a system's name or "equal". A single reference has no interval.
    """

    metric: str
    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    p: float
    items: int
    better: str = "equal"


def summarise(values: Values, reference_of: Mapping[str, str]) -> Summary:
    """The mean and its interval (from 10,000 draws of references, all items of a reference together).

    Args:
        values: at least one number.
        reference_of: the reference of each item.
    """
    sums, counts = _clusters(values, reference_of)
    interval = _interval(_drawn_means(sums, counts), len(counts))
    return Summary(float(sums.sum() / counts.sum()), *interval, len(values), len(counts))


def summarise_sum(columns: Sequence[tuple[float, Values]], reference_of: Mapping[str, str]) -> Summary:
    """A weighted sum of the means of several metrics of one system, which need not have the same items.

    References are drawn for all metrics together; `items` is the number of the metric that has fewest.

    Args:
        columns: weight and numbers of each metric, at least one number.
        reference_of: the reference of each item.
    """
    references = sorted({reference_of[item] for _, values in columns for item in values})
    mean, drawn = 0.0, np.zeros(DRAWS)
    for weight, values in columns:
        sums, counts = _clusters(values, reference_of, references)
        mean += weight * float(sums.sum() / counts.sum())
        with np.errstate(invalid="ignore"):  # a draw without any of the references that have this metric
            drawn += weight * _drawn_means(sums, counts)
    interval = _interval(drawn, len(references))
    return Summary(mean, *interval, min(len(values) for _, values in columns), len(references))


def compare_all(
    metrics: Sequence[Metric],
    numbers: Mapping[str, Mapping[str, Values]],
    systems: Sequence[str],
    reference_of: Mapping[str, str],
) -> list[Comparison]:
    """Each pair of systems by each metric that has a better side, Holm's correction over all of them together.

    Args:
        numbers: {metric: {system: {item: number}}}.
        systems: which to compare; floor and ceiling rows are left out by not being named.
    """
    found = []
    for metric in metrics:
        of_system = numbers.get(metric.name, {})
        for first, second in (
            combinations([name for name in systems if of_system.get(name)], 2) if metric.better else ()
        ):
            compared = _compare(metric.name, (first, second), of_system, reference_of)
            if compared is not None:
                found.append(compared)
    directions = {metric.name: metric.better for metric in metrics}
    significant = holm([comparison.p for comparison in found])
    decided = []
    for comparison, certain in zip(found, significant, strict=True):
        low, high = comparison.low, comparison.high
        outside = low is not None and high is not None and (low > 0 or high < 0)
        ahead = (comparison.difference > 0) == (directions[comparison.metric] == "higher")
        winner = comparison.first if ahead else comparison.second
        decided.append(replace(comparison, better=winner if certain and outside else "equal"))
    return decided


def _compare(
    metric: str, pair: tuple[str, str], of_system: Mapping[str, Values], reference_of: Mapping[str, str]
) -> Comparison | None:
    first, second = (of_system[name] for name in pair)
    differences = {item: first[item] - second[item] for item in first if item in second}
    if not differences:
        return None
    summary = summarise(differences, reference_of)
    sums, counts = _clusters(differences, reference_of)
    p = max(
        bootstrap_p(_drawn_means(sums, counts)), paired_p(np.asarray(sums / counts)), smallest_p(summary.references)
    )
    return Comparison(metric, *pair, summary.mean, summary.low, summary.high, p, summary.items)


def smallest_p(references: int) -> float:
    """The least p that so many references allow: that of a sign test, also where a t test could go below it."""
    return max(1 / DRAWS, 2.0 ** (1 - references))


def _interval(drawn: NDArray[np.float64], references: int) -> tuple[float | None, float | None]:
    """A 95 % interval from draws; draws of a single reference are all alike and say nothing of others.

    Of few references the middle 95 % of the draws hold the true mean less often: draws vary by (n - 1) / n of what they
    should, and not as Student's t. The percentiles are as much further out (Hesterberg's expanded percentiles).
    """
    if references < 2:
        return None, None
    reach = np.sqrt(references / (references - 1)) * student.ppf(0.975, references - 1)
    tail = 100 * float(norm.sf(reach))
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def _clusters(
    values: Values, reference_of: Mapping[str, str], references: Sequence[str] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each reference: of those that are named, or else of those that have values."""
    references = references or sorted({reference_of[item] for item in values})
    place = {name: index for index, name in enumerate(references)}
    sums, counts = np.zeros(len(references)), np.zeros(len(references))
    for item, value in values.items():
        sums[place[reference_of[item]]] += value
        counts[place[reference_of[item]]] += 1
    return sums, counts


def _drawn_means(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over drawn references, (10000,). The draw depends on the number of references alone."""
    drawn = _draws(len(sums))
    return np.asarray((drawn @ sums) / (drawn @ counts))


@lru_cache(maxsize=8)
def _draws(number: int) -> NDArray[np.float64]:
    """How often each reference is drawn, (10000, number)."""
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=DRAWS)
    return drawn.astype(np.float64)
