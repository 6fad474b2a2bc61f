"""Line charts as SVG text, without any library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from training.reporting.history import Points

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 12, 30
_COLORS = ("#1f63b5", "#d9661f", "#2f8f4e", "#a03c9c", "#8a6d1d", "#c2334d", "#3a9aa5", "#6b6b6b")
_FEWEST_TICKS, _ROUND = 4, (1, 2, 5)
_SMOOTHED_FROM = 60  # points


def line_chart(title: str, series: Mapping[str, Points], redone: Sequence[int] = (), *, smooth: bool = False) -> str:
    """A figure of one or more curves over steps, with a legend of the last values.

    The rarest one percent of values may lie outside what is drawn. Empty where no series has a point.

    Args:
        redone: steps that are marked by dashed lines.
        smooth: draw long curves faintly, and their running mean over a twentieth of their length.
    """
    shown = {name: points for name, points in series.items() if points}
    if not shown:
        return ""
    steps = [float(step) for points in shown.values() for step, _ in points]
    x_range, y_range = (min(steps), max(steps)), _value_range([v for points in shown.values() for _, v in points])
    parts = [_axes(x_range, y_range)]
    for step in redone:
        if x_range[0] < step < x_range[1]:
            x = _place(step, x_range, _LEFT, _WIDTH - _RIGHT)
            parts.append(f'<line class="redone" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    legend = []
    for index, (name, points) in enumerate(shown.items()):
        color = _COLORS[index % len(_COLORS)]
        if smooth and len(points) >= _SMOOTHED_FROM:
            parts.append(f'<polyline class="raw" points="{_path(points, x_range, y_range)}" stroke="{color}"/>')
            points = _smoothed(points)
        parts.append(f'<polyline points="{_path(points, x_range, y_range)}" stroke="{color}"/>')
        legend.append(f'<span style="color:{color}">{escape(name)}</span> {_number(points[-1][1])}')
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<p class="legend">{", ".join(legend)}</p></figure>'
    )


def _path(points: Points, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    places = []
    for step, value in points:
        inside = min(max(value, y_range[0]), y_range[1])
        x = _place(step, x_range, _LEFT, _WIDTH - _RIGHT)
        places.append(f"{x:.1f},{_place(inside, y_range, _HEIGHT - _BOTTOM, _TOP):.1f}")
    return " ".join(places)


def ticks(span: tuple[float, float]) -> list[tuple[float, str]]:
    """Round numbers within a range, and how they are written."""
    low, high = span
    if high <= low:
        return [(low, _number(low))]
    exponent = math.floor(math.log10((high - low) / _FEWEST_TICKS))
    sizes = [factor * 10.0**power for power in (exponent - 1, exponent, exponent + 1) for factor in _ROUND]
    size = max(size for size in sizes if _FEWEST_TICKS * size <= (high - low) * (1 + 1e-9))
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [(index * size, f"{index * size:.6g}") for index in range(first, last + 1)]


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    parts = []
    for value, label in ticks(y_range):
        y = _place(value, y_range, _HEIGHT - _BOTTOM, _TOP)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for step, label in ((step, label) for step, label in ticks(x_range) if step.is_integer()):
        x = _place(step, x_range, _LEFT, _WIDTH - _RIGHT)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _smoothed(points: Points) -> Points:
    reach = len(points) // 40
    values = [value for _, value in points]
    around = [values[max(0, index - reach) : index + reach + 1] for index in range(len(points))]
    return [(step, sum(near) / len(near)) for (step, _), near in zip(points, around, strict=True)]


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest value, the outermost half percent on either side left out; never empty."""
    ordered = sorted(values)
    skip = len(ordered) // 200
    low, high = ordered[skip], ordered[len(ordered) - 1 - skip]
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room, high + room)


def _place(value: float, span: tuple[float, float], start: float, end: float) -> float:
    if math.isclose(span[0], span[1]):
        return (start + end) / 2
    return start + (end - start) * (value - span[0]) / (span[1] - span[0])


def _number(value: float) -> str:
    return f"{value:.3g}"
