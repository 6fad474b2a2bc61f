"""Curves over the length of the training: the measures of arms by steps, curves.json and curves.png."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from contextanyone_core.atomic_file import whole_file, write_text
from contextanyone_core.late_import import missing
from training.personal_study.arms import ARMS
from training.personal_study.measures import MEASURES
from training.personal_study.study import Study, make_cells

CURVE_ARMS = ("two_stages", "weakening", "regions_pose")
"""What is drawn if no arms are named: without the losses, with the first of them, and the preset."""

_PANELS = {
    "identity": "identity, percent",
    "context": "place and light as asked, percent",
    "leak_class": "leak by class, percent",
    "bleed": "bleed, percent above chance",
}


@dataclass(frozen=True)
class Curves:
    """A study at several lengths of its trainings.

    Attributes:
        study: its arms all train. lengths: steps, ascending.
    """

    study: Study
    lengths: tuple[int, ...]

    def run(self) -> int | None:
        """Make what is missing, then write curves.json and curves.png. Returns the signal that ended it, else None.

        Raises:
            MissingDependencyError: matplotlib is not installed; nothing has been computed then.
        """
        if find_spec("matplotlib") is None:
            raise missing("Drawing curves", "matplotlib")
        studies = {length: replace(self.study, train_steps=length) for length in self.lengths}
        if (ended_by := make_cells(list(studies.values()))) is not None:
            return ended_by
        found = curves({length: study.metrics() for length, study in studies.items()})
        out = self.study.out
        write_text(out / "curves.json", json.dumps(found, indent=1) + "\n")
        with whole_file(out / "curves.png") as path:
            path.write_bytes(plot(found))
        return None


def curves(metrics: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """`<arm>.<measure>.<steps>.{mean,ci95}` of the metrics of each length."""
    first = next(iter(metrics.values()))["arms"]
    return {
        arm: {
            measure: {str(length): one["arms"][arm][measure] for length, one in metrics.items()}
            for measure in MEASURES
            if all(measure in one["arms"][arm] for one in metrics.values())
        }
        for arm in first
    }


def plot(found: Mapping[str, Any]) -> bytes:
    """A PNG with a panel for each of identity, context, leak and bleed: means and their 95 % intervals by steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for place, (measure, label) in enumerate(_PANELS.items(), 1):
        axes = figure.add_subplot(1, len(_PANELS), place)
        for number, arm in enumerate(found):
            points = found[arm].get(measure, {})
            steps = [int(length) for length in points]
            low, high = zip(*(one["ci95"] for one in points.values()), strict=True) if points else ((), ())
            axes.fill_between(steps, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
            axes.plot(steps, [one["mean"] for one in points.values()], "o-", color=f"C{number}", label=ARMS[arm].title)
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, [str(length) for length in steps])
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()
