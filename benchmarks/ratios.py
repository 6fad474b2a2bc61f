"""Target ratios between timings, each with its bound, computed per round (this project's bounds: docs/SPEED.md)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Timing, ratios


@dataclass(frozen=True)
class Ratio:
    """The ratio of two timings, `above` over `below`; `{mode}` in their names stands for eager or compiled.

    At most one of the bounds is set; without a bound the ratio is only reported.
    """

    name: str
    above: str
    below: str
    at_most: float | None = None
    at_least: float | None = None


STEP_RATIOS = (
    Ratio("ours / plain Wan", "ours {mode}", "wan {mode}", at_most=1.10),
    Ratio("ours / Phantom", "ours {mode}", "phantom {mode}", at_most=0.72),
    Ratio("ours / VACE", "ours {mode}", "vace {mode}", at_most=0.75),
    Ratio("diffusers eager / plain Wan", "wan-diffusers eager", "wan {mode}", at_least=1.15),
    Ratio("plain Wan / diffusers", "wan {mode}", "wan-diffusers {mode}", at_most=1.0),
    Ratio("with a pose / ours", "ours-pose {mode}", "ours {mode}", at_most=1.01),
    Ratio("uncached / ours", "ours-uncached {mode}", "ours {mode}"),
    Ratio("dual / ours", "ours-dual {mode}", "ours {mode}"),
)
VIDEO_RATIOS = (
    Ratio("ours / plain Wan", "contextanyone", "wan"),
    Ratio("ours / Phantom", "contextanyone", "phantom", at_most=0.72),
    Ratio("ours / VACE", "contextanyone", "vace", at_most=0.75),
)
MATMUL_SHARE = 0.60
CACHE_SHARE = 0.02


def compare(
    wanted: Sequence[Ratio],
    timings: Mapping[str, Timing],
    work: Mapping[str, float],
    *,
    modes: Sequence[str] = ("",),
    judge: bool,
) -> list[dict[str, Any]]:
    """Compute every ratio whose two timings exist.

    Args:
        timings: timings by name.
        work: FLOPs by the same names, for the ratio of the FLOPs.
        modes: values of `{mode}`.
        judge: whether the bounds apply at these sizes.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for ratio in wanted:
        for mode in modes:
            above, below = ratio.above.format(mode=mode), ratio.below.format(mode=mode)
            pair = [timings.get(name, Timing()) for name in (above, below)]
            if not pair[0].seconds or not pair[1].seconds or (above, below) in found:
                continue
            each = ratios(pair[0].seconds, pair[1].seconds)
            by_work = work[above] / work[below] if above in work and below in work else None
            entry = {"name": ratio.name, "mode": mode, "above": above, "below": below, "each": each}
            found[above, below] = (
                entry
                | judged(statistics.median(each), ratio.at_most, ratio.at_least, judge=judge)
                | {"by_flops": by_work}
            )
    return list(found.values())


def judged(value: float, at_most: float | None, at_least: float | None, *, judge: bool) -> dict[str, Any]:
    """A value with its bound, and whether it is met: None if there is no bound or it does not apply."""
    bounds = [value <= at_most] if at_most is not None else [value >= at_least] if at_least is not None else []
    return {"value": value, "at_most": at_most, "at_least": at_least, "met": bounds[0] if bounds and judge else None}
