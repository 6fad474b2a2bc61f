"""Whether a difference is more than chance: p of a bootstrap, p of t tests, and Holm's correction of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_1samp, ttest_ind

ALPHA = 0.05
_EQUAL = 1e-12  # relative; what differs by less is rounding

Means = NDArray[np.float64]


def bootstrap_p(drawn: Means) -> float:
    """Two-sided p of a difference from its bootstrap draws, (N,): at least 1 / N, at most 1."""
    p = 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean()))
    return min(max(p, 1 / len(drawn)), 1.0)


def paired_p(differences: Means) -> float:
    """p of a t test of paired differences, one for each independent unit, (N,).

    A bootstrap of few units is too sure of itself; this knows how few they are. Equal differences have 0, or 1 where
    they are 0: a t test has nothing to say of them. One unit alone tells nothing: 1.
    """
    if len(differences) < 2:
        return 1.0
    if np.ptp(differences) <= _EQUAL * np.abs(differences).max():
        return 0.0 if differences.any() else 1.0
    return float(ttest_1samp(differences, 0).pvalue)


def unpaired_p(one: Means, other: Means) -> float:
    """p of a t test of two groups' means; 0 where a group has one, or neither group varies: it has nothing to say."""
    if min(len(one), len(other)) < 2 or (np.ptp(one) == 0 and np.ptp(other) == 0):
        return 0.0
    return float(ttest_ind(one, other).pvalue)


def holm(ps: Sequence[float]) -> list[bool]:
    """Which of the hypotheses fall at 5 % together."""
    significant = [False] * len(ps)
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        if ps[index] > ALPHA / (len(ps) - rank):
            break
        significant[index] = True
    return significant
