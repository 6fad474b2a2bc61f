"""Whether runs that a report takes together were trained alike: in one precision, on processors of one model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

Result = Mapping[str, Any]
Results = Mapping[str, Sequence[Result]]
"""Results of every cell, one per finished seed."""


def warnings(results: Results, compared: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each cell whose seeds were not trained alike, and for each seed of which compared cells were not.

    Args:
        compared: names of two cells each, whose difference the report has.
    """
    found = []
    for name, runs in results.items():
        if not all(alike(*pair) for pair in combinations(runs, 2)):
            by_condition = _grouped((condition(run), str(run["seed"])) for run in runs)
            found.append(f"The seeds of `{name}` were not trained alike ({by_condition}): their spread has that in it.")
    unlike: dict[int, dict[str, str]] = defaultdict(dict)
    of_seed = {name: {run["seed"]: run for run in runs} for name, runs in results.items()}
    for pair in compared:
        one, other = (of_seed.get(name, {}) for name in pair)
        for seed in one.keys() & other.keys():
            if not alike(one[seed], other[seed]):
                unlike[seed] |= {name: condition(of_seed[name][seed]) for name in pair}
    for seed, cells in sorted(unlike.items()):
        by_condition = _grouped((trained, f"`{name}`") for name, trained in cells.items())
        found.append(
            f"With seed {seed} cells that are compared were not trained alike ({by_condition}): "
            "the difference between two of these has that in it."
        )
    return found


def condition(result: Result) -> str:
    """In which precision and on what a run was trained; results that do not say it were trained in bf16."""
    processor = result["processor"] if "precision" in result else "an unknown processor"
    return f"{result.get('precision', 'bf16')} on {processor}"


def alike(one: Result, other: Result) -> bool:
    """Whether two runs had one precision and, where both say it, one processor."""
    precisions = {run.get("precision", "bf16") for run in (one, other)}
    processors = {run["processor"] for run in (one, other) if "precision" in run}
    return len(precisions) == 1 and len(processors) < 2


def _grouped(conditions: Iterable[tuple[str, str]]) -> str:
    """What had each condition: "bf16 on A: 0, 1; fp32 on B: 2"."""
    groups: dict[str, list[str]] = defaultdict(list)
    for trained, name in conditions:
        groups[trained].append(name)
    return "; ".join(f"{trained}: {', '.join(names)}" for trained, names in groups.items())
