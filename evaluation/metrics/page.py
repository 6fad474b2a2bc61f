"""The results as one HTML page: tables to sort, curves, distributions, and players beside the reference."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from contextanyone_core.atomic_file import write_text
from contextanyone_core.prompts import TwoStagePrompt
from evaluation.clip_set import Item
from evaluation.metrics.catalogue import OTHER, STILL, TRUTH, Metric
from evaluation.metrics.evaluate import Curve, Results

_PARTS = Path(__file__).parent / "page"


def write_page(
    results: Results,
    metrics: Sequence[Metric],
    record: Mapping[str, Any],
    clips: tuple[Sequence[Item], Mapping[str, Path]],
    out: Path,
) -> None:
    """Write `report.html` into a folder. It needs no server and loads nothing but the clips and pictures.

    Clips are linked by paths relative to the folder. Names and prompts are data to the page, never markup.

    Args:
        record: what the numbers were made with.
        clips: the items, and each system's folder.
    """
    items, folders = clips
    data = {
        "record": record,
        "notes": results.notes,
        "systems": results.systems,
        "bounds": [STILL, OTHER, TRUTH],
        "metrics": [asdict(metric) for metric in metrics if metric.name in results.summaries],
        "summaries": {
            name: {system: asdict(found) for system, found in of_system.items()}
            for name, of_system in results.summaries.items()
        },
        "comparisons": [asdict(comparison) for comparison in results.comparisons],
        "curves": {system: mean_curve(list(of_item.values())) for system, of_item in results.curves.items()},
        "numbers": {name: results.numbers.get(name, {}) for name in results.summaries},
        "items": [_item(item, folders, out) for item in items],
    }
    text = (_PARTS / "report.html").read_text(encoding="utf-8")
    # The data come last: what a prompt contains is not looked at for other placeholders.
    for name in ("css", "js"):
        text = text.replace(f"{{{{{name}}}}}", (_PARTS / f"report.{name}").read_text(encoding="utf-8"))
    write_text(out / "report.html", text.replace("{{data}}", _embedded(data), 1))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of the clips' curves, at the mean times of their frames; of clips as long as most of them."""
    lengths = [len(curve) for curve in curves]
    if not any(lengths):
        return []
    usual = max(set(lengths), key=lengths.count)
    mean = np.mean([curve for curve in curves if len(curve) == usual], axis=0)
    return [(float(second), float(value)) for second, value in mean]


def _item(item: Item, folders: Mapping[str, Path], out: Path) -> dict[str, Any]:
    return {
        "id": item.id,
        "prompt": TwoStagePrompt(item.first, item.later).video_text,
        "reference": _relative(item.reference, out),
        "clips": {name: _relative(folder / item.file, out) for name, folder in folders.items()},
    }


def _relative(path: Path, out: Path) -> str:
    """A link to a path from the page's folder; a folder ends with a slash."""
    link = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
    return quote(link) + ("/" if path.is_dir() else "")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its HTML element."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
