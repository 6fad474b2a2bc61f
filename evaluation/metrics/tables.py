"""The results as files: metrics.json for each item, summary.json with intervals and comparisons, table.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contextanyone_core.atomic_file import write_text
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
        "| metric | " + " | ".join(map(_cell, results.systems)) + " | |",
        "|---" * (len(results.systems) + 2) + "|",
    ]
    for metric in shown:
        of_system = results.summaries[metric.name]
        cells = [interval(of_system.get(system)) for system in results.systems]
        lines.append(f"| {metric.name} | {' | '.join(cells)} | {_ARROWS[metric.better]} |")
    lines += ["", "Means with 95 % intervals over references (10,000 draws); in brackets. A dash: not computed.", ""]
    if results.comparisons:
        lines += ["| metric | first | second | first - second | better |", "|---|---|---|---|---|"]
        for row in results.comparisons:
            difference = f"{row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f})"
            lines.append(
                f"| {row.metric} | {_cell(row.first)} | {_cell(row.second)} | {difference} | {_cell(row.better)} |"
            )
        lines += [
            "",
            "The same items of both, differences paired; equal: not outside chance after Holm's correction.",
            "",
        ]
    lines += [f"- {metric.name}: {metric.meaning}." for metric in shown]
    lines += ["", *(f"{name}: {value}." for name, value in record.items() if isinstance(value, str)), ""]
    return "\n".join([*lines, *results.notes, ""]) if results.notes else "\n".join(lines)


def interval(found: Summary | None) -> str:
    """A mean with its interval, or a dash."""
    return "-" if found is None else f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f})"


def _cell(text: str) -> str:
    """A name that a user gave, inside a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
