"""What is left to compute, in hours of GPUs and CPUs, from the measured or stated seconds for a row of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.stage import Stage

_SIZES = (1, 8, 64)  # GPUs, or workers of a chain that uses none
_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """What a stage took so far: sources and rows that it computed, and seconds, over all processes."""

    sources: int = 0
    rows: int = 0
    seconds: float = 0.0

    def plus(self, rows: int, seconds: float) -> Cost:
        """With one more source."""
        return Cost(self.sources + 1, self.rows + rows, self.seconds + seconds)


def reckoning(
    stages: Sequence[Stage], costs: Mapping[str, Cost], stated: Mapping[str, float], left: Sequence[int]
) -> str:
    """A table of what is left: rows, seconds a row, hours; then the sum, and the time for several sizes. Nothing: "".

    A worker takes a source through all stages, so that with one worker for each GPU the CPU stages add to its time.

    Args:
        costs, stated: by name of the stage; stated seconds hold where nothing was measured.
        left: for each stage the sources that it has not seen.
    """
    if not any(left):
        return ""
    hours, unknown = {True: 0.0, False: 0.0}, []
    lines = []
    rows_of_a_source = 1.0
    for stage, sources in zip(stages, left, strict=True):
        cost = costs.get(stage.name, Cost())
        rows_of_a_source = cost.rows / cost.sources if cost.sources else rows_of_a_source
        seconds = cost.seconds / cost.rows if cost.rows else 0.0 if cost.sources else stated.get(stage.name)
        rows = rows_of_a_source * sources
        if seconds is None:
            unknown.append(stage.name)
            continue
        hours[stage.gpu] += rows * seconds / _HOUR
        kind, basis = "GPU" if stage.gpu else "CPU", "measured" if cost.sources else "stated"
        lines.append(
            f"{rows:>10.0f}  rows left of {stage.name}: {seconds:.4g} s a row ({basis}), "
            f"{rows * seconds / _HOUR:.4g} {kind}-hours\n"
        )
    if unknown:
        lines.append(
            f"{'':>10}  not measured: {', '.join(unknown)}; run some sources with --limit, "
            "or state engine.stage_seconds\n"
        )
    if len(unknown) < len(stages):
        name = "GPUs" if any(stage.gpu for stage in stages) else "workers"
        times = ", ".join(f"{sum(hours.values()) / size:.4g} h with {size} {name}" for size in _SIZES)
        lines.append(f"{hours[True]:>10.4g}  GPU-hours and {hours[False]:.4g} CPU-hours left: {times}\n")
    return "".join(lines)
