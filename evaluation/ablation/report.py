"""Report of an ablation: ablations.json, table.md and plot.png."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from contextanyone_core.atomic_file import whole_file, write_text
from evaluation.ablation.conditions import Results, warnings
from evaluation.ablation.plan import AblationPlan, Claim
from evaluation.ablation.statistics import MEASURES, SHARES, Runs, judge, of_both, summary, values
from training.evaluation.accuracy import chance
from training.world import ATTRIBUTES

_KEPT_APART = ("measured", "config", "weights")
"""What is in a result's own file only, which is found by its cell, seed and hash."""

_INTERVALS = (
    "Attributes kept: percent of the frames of {count} test characters, a mean over the attributes. Drift: how many "
    "points fewer in the last frame than in the first. Copied: percent of the frames that show the picture's place. "
    "Motion: over the rendering's. In brackets: 95 % intervals over the characters, and over the seeds where a cell "
    "has several. What one seed shows, and a difference from it, says nothing of other training runs."
)
_DIFFERENCES = (
    "Attributes kept, and each of them, in percent of frames. Less `{first}`: over the seeds and characters that both "
    "have; where its interval holds 0 no difference is shown."
)


def describe(plan: AblationPlan, results: Results) -> dict[str, Any]:
    """The content of ablations.json: `cells.<cell>.{attributes,drift,copy,motion}.{mean,ci95,seeds}` and `claims`.

    `cells.<cell>.missing` has the seeds of the plan that are not finished; a cell without any has no numbers.
    `less_first` is its difference in attributes from the plan's first cell, over the seeds that both have (`compared`).
    `warnings` name runs that are taken together and were not trained alike; it is left out where there are none.
    """
    measured: dict[str, Runs] = {
        name: {result["seed"]: result["measured"] for result in found} for name, found in results.items() if found
    }
    first = next(iter(plan.cells))
    cells: dict[str, Any] = {}
    for name, cell in plan.cells.items():
        cells[name] = {"title": cell.title}
        if name in measured:
            cells[name] |= _numbers(measured[name])
            runs = [{key: value for key, value in result.items() if key not in _KEPT_APART} for result in results[name]]
            cells[name]["runs"] = runs
            compared = None if name == first else of_both(measured[name], measured.get(first, {}), "attributes")
            if compared is not None:
                seeds, *both = compared
                cells[name]["less_first"] = {**summary(*both), "compared": list(seeds)}
        if missing := _unfinished(name, plan, results):
            cells[name]["missing"] = missing
    claims = []
    for claim, verdict in zip(plan.claims, judge(plan.claims, measured), strict=True):
        row = claim.model_dump(mode="json")
        row |= {"verdict": "open"} if verdict is None else asdict(verdict)
        if row["verdict"] == "open":
            row["settled_by"] = _settled_by(claim, plan, results)
        claims.append(row)
    report = {"note": plan.note, "measuring": plan.measuring.model_dump(mode="json"), "cells": cells, "claims": claims}
    pairs = [(name, first) for name in plan.cells] + [(claim.better, claim.worse) for claim in plan.claims]
    unlike = warnings(results, pairs)
    return {**report, "warnings": unlike} if unlike else report


def _numbers(runs: Runs) -> dict[str, Any]:
    """The measures of a cell, and the means over its seeds of each attribute and of what the prompt asks for."""
    found = list(runs.values())
    by_attribute = 100 * np.mean([run["by_attribute"] for run in found], axis=0)
    return {
        **{measure: summary(values(found, measure), share=measure in SHARES) for measure in MEASURES},
        "by_attribute": dict(zip(ATTRIBUTES, by_attribute.tolist(), strict=True)),
        "scene": {name: 100 * float(np.mean([run["scene"][name] for run in found])) for name in found[0]["scene"]},
    }


def _settled_by(claim: Claim, plan: AblationPlan, results: Results) -> str:
    """What an open claim lacks: runs of the plan, a second seed in the plan, or more seeds than it has."""
    lacking, counts = [], []
    for name in (claim.better, claim.worse):
        planned = plan.cells[name].seeds
        counts.append(len(planned))
        if missing := _unfinished(name, plan, results):
            lacking.append(f"{name} with seed{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}")
        if len(planned) == 1:
            lacking.append(f"more seeds of {name} than the plan's one")
    return "; ".join(lacking) or f"more seeds than the plan's: the spread between them is too large for {min(counts)}"


def _unfinished(name: str, plan: AblationPlan, results: Results) -> list[int]:
    finished = {result["seed"] for result in results.get(name, ())}
    return [seed for seed in plan.cells[name].seeds if seed not in finished]


def write_report(plan: AblationPlan, results: Results, folder: Path) -> dict[str, Any]:
    """Write the three files, each atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    found = describe(plan, results)
    write_text(folder / "ablations.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text(folder / "table.md", table(found))
    with whole_file(folder / "plot.png") as path:
        path.write_bytes(plot(found))
    return found


def table(found: Mapping[str, Any]) -> str:
    """The results as a Markdown table, attributes in percent, drift and copying in percentage points."""
    lines = [f"{found['note']}\n"] if found["note"] else []
    lines += [
        "| cell | attributes kept | drift | picture's place copied | motion | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name, cell in found["cells"].items():
        if "attributes" not in cell:
            lines.append(f"| {name}: {cell['title']} | not run | | | | {_seeds(cell)} |")
            continue
        parts = []
        for measure in MEASURES:
            low, high = cell[measure]["ci95"]
            digits = 2 if measure == "motion" else 1
            parts.append(f"{cell[measure]['mean']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append(f"| {name}: {cell['title']} | {' | '.join(parts)} | {_seeds(cell)} |")
    lines += ["", _INTERVALS.format(**found["measuring"]), ""]
    lines += [f"**Warning.** {text}\n" for text in found.get("warnings", ())]
    lines += [*_by_attribute(found["cells"]), ""]
    lines += ["| claim | difference | seeds | verdict |", "|---|---|---|---|"]
    for claim in found["claims"]:
        compared = _difference(claim["difference"], claim["ci95"]) if "difference" in claim else "not run"
        seeds = ", ".join(map(str, claim.get("seeds", ())))
        settle = f"; to settle: {claim['settled_by']}" if "settled_by" in claim else ""
        lines.append(f"| {claim['text']} | {compared} | {seeds} | {claim['verdict']}{settle} |")
    return "\n".join([*lines, ""])


def _by_attribute(cells: Mapping[str, Any]) -> list[str]:
    """A table of each attribute, of the difference from the first cell, and of what the training took."""
    first = next(iter(cells))
    names = " | ".join(name.replace("_", " ") for name in ATTRIBUTES)
    lines = [
        f"| cell | all | less `{first}` | {names} | FLOPs | minutes |",
        "|---" * (len(ATTRIBUTES) + 5) + "|",
    ]
    for name, cell in cells.items():
        if "attributes" not in cell:
            continue
        low, high = cell["attributes"]["ci95"]
        less = cell.get("less_first")
        numbers = [f"{cell['by_attribute'][attribute]:.0f}" for attribute in ATTRIBUTES]
        flops, seconds = ([run.get(key) for run in cell["runs"]] for key in ("flops", "seconds"))
        parts = [
            f"`{name}`",
            f"{cell['attributes']['mean']:.1f} ({low:.1f} to {high:.1f})",
            "" if less is None else _difference(less["mean"], less["ci95"]),
            *numbers,
            "" if None in flops else f"{np.mean(flops):.1e}".replace("e+", "e"),
            "" if None in seconds else f"{np.mean(seconds) / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(parts)} |")
    guessed = chance()
    numbers = [f"{100 * guessed['per_attribute'][attribute]:.0f}" for attribute in ATTRIBUTES]
    lines.append(f"| chance | {100 * guessed['mean']:.0f} | | {' | '.join(numbers)} | | |")
    return [*lines, "", _DIFFERENCES.format(first=first)]


def _difference(mean: float, interval: Sequence[float]) -> str:
    return f"{mean:+.1f} ({interval[0]:+.1f} to {interval[1]:+.1f})"


def _seeds(cell: Mapping[str, Any]) -> str:
    """How many seeds a cell's numbers are of, of how many of the plan, and what each of several keeps."""
    done, missing = len(cell.get("runs", ())), len(cell.get("missing", ()))
    count = f"{done} of {done + missing}" if missing else str(done)
    return f"{count}: {', '.join(f'{mean:.1f}' for mean in cell['attributes']['seeds'])}" if done > 1 else count


def plot(found: Mapping[str, Any]) -> bytes:
    """A PNG with the attributes kept by every measured cell and their intervals; dots are single seeds.

    The interval of one seed is thin: it is over the characters alone.
    """
    from matplotlib.figure import Figure

    rows = [(name, cell["attributes"]) for name, cell in found["cells"].items() if "attributes" in cell]
    figure = Figure(figsize=(8, 0.4 * max(len(rows), 2) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, numbers) in enumerate(rows):
        width = 2.5 if len(numbers["seeds"]) > 1 else 1
        axes.plot(numbers["ci95"], [place, place], color="#1f63b5", linewidth=width)
        axes.plot(numbers["seeds"], [place] * len(numbers["seeds"]), "o", color="#d9661f", markersize=4)
        axes.plot(numbers["mean"], place, "|", color="#1f63b5", markersize=12)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("attributes kept, percent of frames (line: 95 % interval, thin: of one seed; dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()
