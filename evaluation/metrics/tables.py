"""The results as files: metrics.json for each item, summary.json with intervals and comparisons, table.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contextanyone_core.atomic_file import write_text
from evaluation.markdown import cell
from evaluation.metrics.catalogue import Metric
from evaluation.metrics.evaluate import Results
from evaluation.metrics.statistics import Summary

_ARROWS = {"higher": "higher is better", "lower": "lower is better", "": "neither way is better"}


def write_tables(results: Results, metrics: Sequence[Metric], record: Mapping[str, Any], out: Path) -> None:
    """Write the three files into a folder.

    metrics.json is {metric: {system: {item: number}}}, as evaluation/study/analyse.py --metrics reads it.

    Args:
        record: what the numbers were made with: backbones and their revisions, base, set.
    """
    summary = {
        "record": record,
        "notes": results.notes,
        "systems": results.systems,
        "metrics": {
            name: {system: asdict(found) for system, found in of_system.items()}
            for name, of_system in results.summaries.items()
        },
        "comparisons": [asdict(comparison) for comparison in results.comparisons],
    }
    write_text(out / "metrics.json", json.dumps(results.numbers, indent=1) + "\n")
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_text(out / "table.md", table(results, metrics, record))


def table(results: Results, metrics: Sequence[Metric], record: Mapping[str, Any]) -> str:
    """The numbers as Markdown: rows are metrics, columns are systems; then the comparisons and the notes."""
    shown = [metric for metric in metrics if metric.name in results.summaries]
    lines = [
        "| metric | " + " | ".join(map(cell, results.systems)) + " | |",
        "|---" * (len(results.systems) + 2) + "|",
    ]
    for metric in shown:
        of_system = results.summaries[metric.name]
        cells = [mean_cell(of_system.get(system), results.items) for system in results.systems]
        lines.append(f"| {metric.name} | {' | '.join(cells)} | {_ARROWS[metric.better]} |")
    lines += [
        "",
        "Means with 95 % intervals over references (10,000 draws) in brackets; none of a single reference. "
        f"n: of so many of the {results.items} items, where it is not all. A dash: not computed.",
        "",
    ]
    if results.comparisons:
        lines += ["| metric | first | second | first - second | better |", "|---|---|---|---|---|"]
        for row in results.comparisons:
            difference = (
                f"{row.difference:+.4f}{_bracketed(row.low, row.high, '+.4f')}{_counted(row.items, results.items)}"
            )
            lines.append(
                f"| {row.metric} | {cell(row.first)} | {cell(row.second)} | {difference} | {cell(row.better)} |"
            )
        lines += [
            "",
            "The same items of both, differences paired; equal: not outside chance after Holm's correction.",
            "",
        ]
    lines += [f"- {metric.name}: {metric.meaning}." for metric in shown]
    lines += ["", *(f"{name}: {value}." for name, value in record.items() if isinstance(value, str)), ""]
    return "\n".join([*lines, *results.notes, ""]) if results.notes else "\n".join(lines)


def mean_cell(found: Summary | None, items: int) -> str:
    """A mean with its interval, and n where it is not all items; or a dash."""
    if found is None:
        return "-"
    return f"{found.mean:.4f}{_bracketed(found.low, found.high, '.4f')}{_counted(found.items, items)}"


def _bracketed(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _counted(number: int, items: int) -> str:
    return "" if number == items else f", n = {number}"
