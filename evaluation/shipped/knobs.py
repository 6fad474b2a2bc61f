"""What the knobs do: the gap at inference, the factor of Emphasize-Attention, and the two scales of guidance."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextanyone_core.atomic_file import whole_file, write_text
from contextanyone_core.generation.pipeline import GenerationSettings
from contextanyone_core.sampling.guidance import DualGuidance
from evaluation.shipped.cells import Cell, Studio, as_text, summarise

GAPS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
EMPHASES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
SCALES = (1.0, 2.0, 3.0, 5.0)
MEASURES = ("attributes", "prompt", "copied", "motion")
_TITLES = {
    "attributes": "attributes kept, %",
    "prompt": "prompt followed, %",
    "copied": "picture's place copied, %",
    "motion": "motion / rendering's",
}
_COLORS = {"attributes": "#1f63b5", "prompt": "#2f8f4e", "copied": "#d9661f", "motion": "#6b4fa0"}
_AXES = {"gap": "gap, latent frames", "emphasis": "emphasis"}

Row = dict[str, Any]
"""A cell of a knob: `value` (a number, or both scales), and for each measure its mean with interval."""


def cells(knob: str, base: GenerationSettings) -> list[tuple[Any, Cell]]:
    """The values of a knob with their cells; everything else is as in `base`."""
    settings: list[tuple[Any, GenerationSettings]]
    if knob == "gap":
        settings = [(gap, replace(base, gap=gap)) for gap in GAPS]
    elif knob == "emphasis":
        settings = [(factor, replace(base, emphasis=factor)) for factor in EMPHASES]
    else:
        pairs = [(prompt, reference) for prompt in SCALES for reference in SCALES]
        settings = [(list(pair), replace(base, guidance=DualGuidance(*pair))) for pair in pairs]
    return [(value, Cell("plain", f"{knob} {value}", generation)) for value, generation in settings]


def measure_knob(studio: Studio, knob: str, base: GenerationSettings, seeds: Sequence[int]) -> list[Row]:
    """Measure every value of a knob on the same characters."""
    rows = []
    for value, cell in cells(knob, base):
        measured = studio.measure(cell, seeds)
        rows.append({"value": value, **{name: summarise(measured, name) for name in MEASURES}})
    return rows


def write_knobs(found: Mapping[str, list[Row]], record: Mapping[str, Any], out: Path) -> str:
    """Write numbers, table and plot of each knob under its name, each whole or not at all; returns the tables."""
    texts = []
    for knob, rows in found.items():
        texts.append("\n".join([_table(knob, rows), describe(record), ""]))
        write_text(out / f"{knob}.json", json.dumps({"record": record, "rows": rows}, indent=1, allow_nan=False) + "\n")
        write_text(out / f"{knob}.md", texts[-1])
        with whole_file(out / f"{knob}.png") as path:
            path.write_bytes(grid_plot(rows) if knob == "guidance" else line_plot(knob, rows))
    return "\n".join(texts)


def describe(record: Mapping[str, Any]) -> str:
    """What was measured, in a sentence."""
    base = record["generation"]
    size = f"{base['width']} x {base['height']} pixels, {base['num_frames']} frames"
    return (
        f"{record['count']} test characters of seed {record['seed']}, 95 % intervals over them; {size}, "
        f"{base['steps']} steps of {base['sampler']}; transformer SHA-256 {record['weights']['transformer'][:12]}."
    )


def record_of(studio: Studio, base: GenerationSettings, seed: int, count: int) -> dict[str, Any]:
    """What the numbers were made with."""
    return {"seed": seed, "count": count, "generation": asdict(base), "weights": studio.hashes}


def line_plot(knob: str, rows: Sequence[Row]) -> bytes:
    """A PNG: percentages above, motion below, over the values of a knob; bars are 95 % intervals."""
    figure = _figure((6.4, 4.4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    values = [row["value"] for row in rows]
    for name in MEASURES:
        axes = below if name == "motion" else above
        means = np.asarray([row[name]["mean"] for row in rows])
        sides = [[row[name]["mean"] - row[name]["low"], row[name]["high"] - row[name]["mean"]] for row in rows]
        errors = np.maximum(np.asarray(sides).T, 0)
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 3, "color": _COLORS[name]}
        axes.errorbar(values, means, errors, label=_TITLES[name], **style)
    above.set_ylim(0, 102)
    below.set_ylim(bottom=0)
    below.axhline(1, color="#888888", linewidth=0.8, linestyle=":")
    if knob == "gap":
        below.set_xscale("log")
        below.set_xticks(values, [f"{value:g}" for value in values])
        below.minorticks_off()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)
    below.set_ylabel(_TITLES["motion"], fontsize=8)
    below.set_xlabel(_AXES[knob])
    return _png(figure)


def grid_plot(rows: Sequence[Row]) -> bytes:
    """A PNG: three grids over both scales of guidance, with the numbers in them."""
    figure = _figure((9.6, 3.4))
    places = {(row["value"][0], row["value"][1]): row for row in rows}
    for axes, name in zip(figure.subplots(1, 3), ("attributes", "prompt", "motion"), strict=True):
        grid = np.asarray([[places[prompt, reference][name]["mean"] for reference in SCALES] for prompt in SCALES])
        axes.imshow(grid, cmap="viridis", origin="lower")
        middle = (grid.min() + grid.max()) / 2
        for (row, column), value in np.ndenumerate(grid):
            text = f"{value:.2f}" if name == "motion" else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if value < middle else "black")
        labels = [f"{scale:g}" for scale in SCALES]
        axes.set_xticks(range(len(SCALES)), labels)
        axes.set_yticks(range(len(SCALES)), labels)
        axes.set_xlabel("reference scale")
        axes.set_ylabel("guidance scale")
        axes.set_title(_TITLES[name], fontsize=10)
    return _png(figure)


def _table(knob: str, rows: Sequence[Row]) -> str:
    head = "guidance scale, reference scale" if knob == "guidance" else _AXES[knob]
    lines = [f"| {head} | {' | '.join(_TITLES[name] for name in MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for row in rows:
        value = row["value"]
        shown = ", ".join(f"{part:g}" for part in (value if isinstance(value, list) else [value]))
        numbers = [as_text(row[name], 2 if name == "motion" else 1) for name in MEASURES]
        lines.append(f"| {shown} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=100)
    return written.getvalue()
