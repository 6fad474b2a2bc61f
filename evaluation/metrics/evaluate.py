"""All clips of all systems, with the floor and ceiling rows, to numbers, intervals and comparisons."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from contextanyone_core.errors import InputError
from evaluation.clip_set import Item
from evaluation.metrics.catalogue import IDENTITY, OTHER, STILL, TRUTH, Metric, matched
from evaluation.metrics.frames import Source, file_digest
from evaluation.metrics.matched import Numbers, add_matched
from evaluation.metrics.measure import Instruments, measure
from evaluation.metrics.opens2v import COLUMNS, WEIGHTS, Parts, scores
from evaluation.metrics.statistics import Comparison, Summary, compare_all, smallest_p, summarise, summarise_sum
from evaluation.significance import ALPHA

Curve = list[tuple[float, float]]


@dataclass
class Results:
    """Everything that the tables show.

    Attributes:
        numbers: {metric: {system: {item: number}}}.
        curves: {system: {item: [(second, similarity to the reference)]}}.
        systems: rows in the order of the tables, floor and ceiling last.
        compared: those that are compared with one another.
        items: how many the set has.
        notes: what was not computed, and why.
    """

    numbers: Numbers
    curves: dict[str, dict[str, Curve]]
    systems: list[str]
    compared: list[str]
    items: int
    summaries: dict[str, dict[str, Summary]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Systems:
    """What is compared.

    Attributes:
        folders: each system's clips.
        base: the system whose motion is the measure of motion; by default the truth, if it is given.
        parts: {system: {item: OpenS2V's parts}}, where they were computed elsewhere.

    Raises: InputError for a system with the name of a floor row, or a base or parts of no system.
    """

    folders: Mapping[str, Path]
    base: str | None = None
    parts: Mapping[str, Mapping[str, Parts]] = field(default_factory=dict)

    @property
    def measure_of_motion(self) -> str | None:
        """The system whose motion is the measure."""
        return self.base or (TRUTH if TRUTH in self.folders else None)

    def __post_init__(self) -> None:
        if taken := [name for name in (STILL, OTHER) if name in self.folders]:
            raise InputError(f"--videos names a system {taken[0]}, which is a row of every table; choose another name.")
        for option, name in (("--base", self.base), *(("a system of --parts", name) for name in self.parts)):
            if name is not None and name not in self.folders:
                raise InputError(f"{option} is {name}; the systems are {', '.join(self.folders)}.")


def rows(items: Sequence[Item], folders: Mapping[str, Path]) -> dict[str, dict[str, Source]]:
    """The clip of each row and item: the systems', then the still reference and another person's clip.

    Another person is the next item of another reference, its clip the truth's, or else the first system's; without a
    second reference the row is empty.
    """
    found = {
        name: {item.id: Source(folder / item.file, f"{name}/{item.file}") for item in items}
        for name, folder in folders.items()
    }
    found[STILL] = {item.id: still(item) for item in items}
    donor = TRUTH if TRUTH in folders else next(iter(folders))
    pictures = {item.id: file_digest(item.reference) for item in items}
    others = {}
    for place, item in enumerate(items):
        turned = [*items[place + 1 :], *items[:place]]
        other = next((one for one in turned if pictures[one.id] != pictures[item.id]), None)
        if other is not None:
            others[item.id] = found[donor][other.id]
    found[OTHER] = others
    return found


def still(item: Item) -> Source:
    """An item's reference as a clip."""
    return Source(item.reference, f"references/{item.id}.png", still=True)


def evaluate(instruments: Instruments, items: Sequence[Item], systems: Systems, metrics: Sequence[Metric]) -> Results:
    """Measure every clip and compare the systems.

    Args:
        metrics: what the tables have.

    Raises: InputError where a clip, a picture or a mask cannot be read.
    """
    sources = rows(items, systems.folders)
    results = Results({}, {}, list(sources), [name for name in systems.folders if name != TRUTH], len(items))
    with tqdm(total=sum(map(len, sources.values())), unit="clip", file=sys.stderr, dynamic_ncols=True) as bar:
        for item in items:
            reference = still(item)
            for system, of_item in sources.items():
                if item.id in of_item:
                    _one(instruments, item, system, (of_item[item.id], reference), results)
                    bar.update()
    if instruments.faces is not None:
        _note_faces(instruments.faces.name, items, results)
    _add_parts(systems, items, results)
    base = systems.measure_of_motion
    if base is None:
        results.notes.append(
            "No base and no truth were given: identity at matched motion is missing, and a clip that hardly moves "
            "has an advantage in every similarity."
        )
    else:
        similar = [*IDENTITY, *(metric.name for metric in metrics if metric.name.startswith("face_"))]
        add_matched(results.numbers, base, [name for name in similar if name in results.numbers])
    reference_of = {item.id: file_digest(item.reference) for item in items}
    _summarise(results, reference_of, metrics, base)
    _add_totals(systems, reference_of, results)
    return results


def _one(instruments: Instruments, item: Item, system: str, clips: tuple[Source, Source], results: Results) -> None:
    measured = measure(instruments, item, *clips)
    for name, value in measured.numbers.items():
        results.numbers.setdefault(name, {}).setdefault(system, {})[item.id] = value
    results.curves.setdefault(system, {})[item.id] = measured.curve
    for source in clips:
        source.forget()


def _note_faces(name: str, items: Sequence[Item], results: Results) -> None:
    """Name the items that have no number of faces, because their reference shows none to the model."""
    measured = results.numbers.get(f"face_{name}_all", {}).get(STILL, {})
    if without := [item.id for item in items if item.id not in measured]:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        results.notes.append(
            f"{name} finds no face in the reference of {', '.join(without[:3])}{more}: of {len(without)} of "
            f"{len(items)} items there is no number of faces."
        )


def _add_parts(systems: Systems, items: Sequence[Item], results: Results) -> None:
    known = {item.id for item in items}
    for system, of_item in systems.parts.items():
        if strange := sorted(of_item.keys() - known):
            raise InputError(f"--parts has an item {strange[0]} of {system}, which is not in the set.")
        for item, parts in of_item.items():
            for name, value in scores(parts).items():
                results.numbers.setdefault(name, {}).setdefault(system, {})[item] = value


def _comparable(numbers: Numbers, base: str | None) -> Numbers:
    """Without the base's own numbers at matched motion: its clips match themselves by construction."""
    return {
        name: {
            system: found for system, found in of_system.items() if not (system == base and name.endswith(matched("")))
        }
        for name, of_system in numbers.items()
    }


def _add_totals(systems: Systems, reference_of: Mapping[str, str], results: Results) -> None:
    """OpenS2V's total of each system with parts: the weighted sum of its means; none where one has no item."""
    for system in systems.parts:
        columns = {part: results.numbers.get(name, {}).get(system, {}) for part, name in COLUMNS.items()}
        if empty := [part for part, values in columns.items() if not values]:
            results.notes.append(f"No total of OpenS2V for {system}: no item has {', '.join(empty)}.")
            continue
        weighted = [(WEIGHTS[part], values) for part, values in columns.items()]
        results.summaries.setdefault("opens2v_total", {})[system] = summarise_sum(weighted, reference_of)
        counts = ", ".join(f"{part} {len(values)}" for part, values in columns.items())
        results.notes.append(f"OpenS2V's total of {system} is the sum of means over so many items: {counts}.")


def _summarise(results: Results, reference_of: Mapping[str, str], metrics: Sequence[Metric], base: str | None) -> None:
    for metric in metrics:
        of_system = results.numbers.get(metric.name, {})
        found = {name: summarise(values, reference_of) for name, values in of_system.items() if values}
        if found:
            results.summaries[metric.name] = found
    results.comparisons = compare_all(metrics, _comparable(results.numbers, base), results.compared, reference_of)
    references, count = len(set(reference_of.values())), len(results.comparisons)
    if count and smallest_p(references) > ALPHA / count:
        results.notes.append(
            f"With {references} references and {count} comparisons at once no single difference can be told from "
            "chance: give more references, or fewer systems."
        )
