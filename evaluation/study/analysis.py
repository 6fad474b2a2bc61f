"""Analysis of a study: exclusions, preferences, Bradley-Terry model, agreement, correlation with metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from contextanyone_core.errors import InputError
from evaluation.significance import bootstrap_p, holm, paired_p

LEAST_RATERS = 5
"""A preference of fewer raters is not named."""

_RESAMPLES = 2000
_CORRELATIONS = 500  # resamples of a rank correlation
_MIN_COMPARISONS = 3


class _Answered(BaseModel):
    """A row of a rater's file; without a score where the browser could not show the pair."""

    trial: str
    score: Literal[-2, -1, 0, 1, 2] | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _RatersFile(BaseModel):
    """What the page saves; further fields of it are for the reader."""

    study: str
    rater: str
    answers: list[_Answered]


@dataclass(frozen=True)
class Answer:
    """One answer of one rater to a comparison: `score` from +2 (the first system much better) to -2.

    Items may show one person, in other seeds or places: these have one `reference`.
    """

    rater: str
    item: str
    reference: str
    first: str
    second: str
    score: int


@dataclass(frozen=True)
class Read:
    """The valid answers, and what is left out.

    Attributes:
        excluded: raters with the reason.
        not_shown: trials that the browsers of raters who are not excluded could not show, with the number of these.
        raters: how many files were given.
    """

    answers: list[Answer]
    excluded: dict[str, str]
    not_shown: dict[str, int]
    raters: int


def read_answers(key: Mapping[str, Any], files: Sequence[Path]) -> Read:
    """Read the raters' files, and exclude raters by the study's rules.

    Excluded are raters who passed less than 80 % of the attention checks that they saw, or saw none (a check is passed
    if the clip of the right person is preferred), whose median time is under 3 seconds, or who did not finish.

    Raises:
        InputError: a file belongs to another study or has another format, or two files are by the same rater.
    """
    trials = {trial["id"]: trial for trial in key["trials"]}
    answers: list[Answer] = []
    excluded: dict[str, str] = {}
    not_shown: Counter[str] = Counter()
    raters: set[str] = set()
    for path in files:
        found = _read(path, key["id"], trials)
        rater = found.rater
        if rater in raters:
            raise InputError(f"{path} is of the rater {rater}, of whom there is another file; keep the last one sent.")
        raters.add(rater)
        reason = _reason_to_exclude(found.answers, trials, key["rules"])
        if reason:
            excluded[rater] = reason
            continue
        for row in found.answers:
            trial = trials[row.trial]
            if row.score is None:
                not_shown[row.trial] += 1
            elif not trial["check"]:
                pair = (trial["first"][0], trial["second"][0])
                answers.append(Answer(rater, trial["item"], trial["reference"], *pair, row.score))
    return Read(answers, excluded, dict(not_shown), len(raters))


def analyse(answers: Sequence[Answer], metrics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Compute all results of a study.

    Args:
        metrics: `metrics[name][system][item]`; where lower is better, agreement is a rho below 0.

    Raises:
        InputError: there are no answers.
    """
    if not answers:
        raise InputError("There are no answers to analyse: no rater is left, or no file was given.")
    found: dict[str, Any] = {
        "raters": len({answer.rater for answer in answers}),
        "items": len({answer.item for answer in answers}),
        "references": len({answer.reference for answer in answers}),
        "pairs": _preferences(answers),
        "bradley_terry": _bradley_terry(answers),
        "bradley_terry_separated": _separated(answers),
        "krippendorff_alpha": _alpha(answers),
    }
    if metrics is not None:
        found["spearman"] = {name: _correlation(answers, values) for name, values in metrics.items()}
    return found


def _read(path: Path, identity: str, trials: Mapping[str, Any]) -> _RatersFile:
    try:
        found = _RatersFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no file of answers: {f'{place}: ' if place else ''}{first['msg']}.") from None
    if found.study != identity:
        raise InputError(f"{path} is of the study {found.study}; the key is of {identity}.")
    if wrong := [row.trial for row in found.answers if row.trial not in trials]:
        raise InputError(f"{path} has an answer to {wrong[0]}, which is no trial of the study.")
    if len({row.trial for row in found.answers}) < len(found.answers):
        raise InputError(f"{path} has two answers to one trial.")
    return found


def _reason_to_exclude(rows: Sequence[_Answered], trials: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    if len(rows) < len(trials):
        return f"answered {len(rows)} of {len(trials)} trials"
    checks = [row.score > 0 for row in rows if trials[row.trial]["check"] and row.score is not None]
    if not checks or float(np.mean(checks)) < rules["passed_share"]:
        return f"passed {sum(checks)} of {len(checks)} attention checks"
    median = float(np.median([row.seconds for row in rows if row.score is not None]))
    return f"median time {median:.1f} s" if median < rules["min_seconds"] else ""


def _preferences(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Signed mean, strict and inclusive wins of each pair of systems; intervals resample raters and references.

    A system is preferred if the signed mean's interval leaves out 0 and p is significant after Holm's correction over
    all pairs, by `LEAST_RATERS` or more. p is the largest of the bootstrap's and two t tests': over the raters' means,
    and over the references'.
    """
    pairs: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        pairs[answer.first, answer.second].append(answer)
    rows = [_preference(*systems, chosen) for systems, chosen in pairs.items()]
    for row, certain in zip(rows, holm([row["p"] for row in rows]), strict=True):
        low, high = row["signed_mean"]["ci95"]
        ahead = row["first"] if low > 0 else row["second"] if high < 0 else None
        row["preferred"] = ahead if certain and row["raters"] >= LEAST_RATERS else None
    return rows


def _preference(first: str, second: str, answers: Sequence[Answer]) -> dict[str, Any]:
    scores = np.asarray([answer.score for answer in answers], np.float64)
    measures: dict[str, Callable[[NDArray[np.float64]], float]] = {
        "signed_mean": lambda x: float(x.mean()),
        "strict_win": lambda x: float((x > 0).mean()),
        "inclusive_win": lambda x: float((x > 0).mean() + 0.5 * (x == 0).mean()),
    }
    raters, references = [answer.rater for answer in answers], [answer.reference for answer in answers]
    row: dict[str, Any] = {"first": first, "second": second, "answers": len(answers), "raters": len(set(raters))}
    drawn = [scores[index] for index in _resampled(answers)]
    for name, measure in measures.items():
        low, high = np.percentile([measure(values) for values in drawn], [2.5, 97.5])
        row[name] = {"mean": measure(scores), "ci95": [float(low), float(high)]}
    tested = [paired_p(_means(scores, groups)) for groups in (raters, references)]
    row["p"] = max(bootstrap_p(np.asarray([values.mean() for values in drawn])), *tested)
    return row


def _means(scores: NDArray[np.float64], groups: Sequence[str]) -> NDArray[np.float64]:
    """The mean score of each group."""
    _, place = np.unique(groups, return_inverse=True)
    return np.asarray(np.bincount(place, scores) / np.bincount(place))


def _bradley_terry(answers: Sequence[Answer]) -> dict[str, Any]:
    """Bradley-Terry strengths of the systems (log scale, mean 0; a tie is half a win for each) with intervals."""
    import choix

    systems = sorted({name for answer in answers for name in (answer.first, answer.second)})
    place = {name: index for index, name in enumerate(systems)}
    first = np.asarray([place[answer.first] for answer in answers])
    second = np.asarray([place[answer.second] for answer in answers])
    won = np.asarray([0.5 + 0.5 * np.sign(answer.score) for answer in answers])

    def strengths(index: NDArray[np.int64]) -> NDArray[np.float64]:
        wins = np.zeros((len(systems), len(systems)))
        np.add.at(wins, (first[index], second[index]), won[index])
        np.add.at(wins, (second[index], first[index]), 1 - won[index])
        found = np.asarray(choix.ilsr_pairwise_dense(wins, alpha=0.01), np.float64)
        return np.asarray(found - found.mean(), np.float64)

    drawn = np.stack([strengths(index) for index in _resampled(answers, 300)])
    whole = strengths(np.arange(len(answers)))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {
        name: {"strength": float(whole[index]), "ci95": [float(low[index]), float(high[index])]}
        for name, index in place.items()
    }


def _separated(answers: Sequence[Answer]) -> bool:
    """Whether some systems never lost to the others, not even by a tie: only the prior bounds their strengths then."""
    from scipy.sparse.csgraph import connected_components

    systems = sorted({name for answer in answers for name in (answer.first, answer.second)})
    place = {name: index for index, name in enumerate(systems)}
    won = np.zeros((len(systems), len(systems)), np.bool_)
    for answer in answers:
        pair = place[answer.first], place[answer.second]
        won[pair] |= answer.score >= 0
        won[pair[::-1]] |= answer.score <= 0
    return bool(connected_components(won, connection="strong")[0] > 1)


def _alpha(answers: Sequence[Answer]) -> float | None:
    """Krippendorff's alpha of the scores (interval level): 1 is agreement, 0 is what chance gives."""
    import krippendorff

    raters = sorted({answer.rater for answer in answers})
    units = sorted({(answer.item, answer.first, answer.second) for answer in answers})
    table = np.full((len(raters), len(units)), np.nan)
    for answer in answers:
        table[raters.index(answer.rater), units.index((answer.item, answer.first, answer.second))] = answer.score
    values = table[~np.isnan(table)]
    if len(raters) < 2 or len(np.unique(values)) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="interval"))


def _correlation(answers: Sequence[Answer], values: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Spearman's rho between mean scores of comparisons and differences of a metric; the interval resamples references.

    Where there is none, `rho` is None and `reason` a sentence.
    """
    from scipy.stats import spearmanr

    scores: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for answer in answers:
        scores[answer.item, answer.first, answer.second].append(answer.score)
    reference_of = {answer.item: answer.reference for answer in answers}
    pairs: list[tuple[float, float]] = []
    of_reference: dict[str, list[int]] = defaultdict(list)
    for (item, first, second), found in scores.items():
        if item in values.get(first, {}) and item in values.get(second, {}):
            of_reference[reference_of[item]].append(len(pairs))
            pairs.append((float(np.mean(found)), values[first][item] - values[second][item]))
    table = np.asarray(pairs).reshape(-1, 2)
    if reason := _uncorrelated(table):
        return {"rho": None, "reason": reason, "comparisons": len(pairs)}
    rng, clusters = np.random.default_rng(0), list(of_reference.values())
    drawn = [
        table[np.concatenate([clusters[index] for index in rng.integers(len(clusters), size=len(clusters))])]
        for _ in range(_CORRELATIONS)
    ]
    rhos = [float(spearmanr(part[:, 0], part[:, 1]).statistic) for part in drawn if not _uncorrelated(part)]
    low, high = np.percentile(rhos, [2.5, 97.5])
    rho = float(spearmanr(table[:, 0], table[:, 1]).statistic)
    return {"rho": rho, "ci95": [float(low), float(high)], "comparisons": len(pairs)}


def _uncorrelated(table: NDArray[np.float64]) -> str:
    """Why there is no rank correlation of mean scores and a metric's differences (N, 2); "" if there is one."""
    if len(table) < _MIN_COMPARISONS:
        return f"{len(table)} comparisons have this metric for both clips; {_MIN_COMPARISONS} are needed."
    if np.ptp(table[:, 0]) == 0:
        return "The raters gave every comparison the same score, so there is nothing to correlate with."
    if np.ptp(table[:, 1]) == 0:
        return "The metric does not differ between the systems, or by the same number everywhere; it orders nothing."
    return ""


def _resampled(answers: Sequence[Answer], count: int = _RESAMPLES) -> list[NDArray[np.int64]]:
    """Indices of answers in a bootstrap sample of raters and references.

    An answer counts once per joint draw of both. Items of one reference are drawn together: they are no more persons.
    """
    rng = np.random.default_rng(0)
    raters, rater_of = np.unique([answer.rater for answer in answers], return_inverse=True)
    shown, shown_of = np.unique([answer.reference for answer in answers], return_inverse=True)
    drawn: list[NDArray[np.int64]] = []
    while len(drawn) < count:
        of_rater = np.bincount(rng.integers(len(raters), size=len(raters)), minlength=len(raters))
        of_shown = np.bincount(rng.integers(len(shown), size=len(shown)), minlength=len(shown))
        index = np.repeat(np.arange(len(answers)), of_rater[rater_of] * of_shown[shown_of])
        if len(index):
            drawn.append(index)
    return drawn
