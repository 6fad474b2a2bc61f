"""Reports of the benchmarks: a JSON, a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.machine import GIB
from contextanyone_core.atomic_file import whole_file, write_text

_WIDTH, _LEFT, _RIGHT, _ROW, _HEAD = 900, 240, 170, 22, 40
_INK, _BAR, _OTHER = (40, 40, 40), (31, 99, 181), (160, 160, 160)


def write_report(folder: Path, name: str, result: dict[str, Any], table: str, bars: Sequence[Bar]) -> list[Path]:
    """Write `<name>.json`, `<name>.md` and `<name>.png` into `folder`; returns the three paths.

    Raises:
        OSError: the disk is full.
    """
    paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "png")]
    write_text(paths[0], json.dumps(result, indent=1) + "\n")
    write_text(paths[1], table)
    with whole_file(paths[2]) as beside:
        draw_bars(beside, bars)
    return paths


class Bar:
    """A bar of the plot; a value of None is a heading."""

    def __init__(self, label: str, value: float | None = None, note: str = "", *, ours: bool = False) -> None:
        self.label, self.value, self.note, self.ours = label, value, note, ours


def draw_bars(path: Path, bars: Sequence[Bar]) -> None:
    """Draw horizontal bars of seconds on one scale, as a PNG."""
    image = Image.new("RGB", (_WIDTH, _HEAD + _ROW * len(bars) + 12), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    canvas.text((_LEFT, 12), "seconds, the median of all rounds", fill=_INK, font=font)
    longest = max((bar.value for bar in bars if bar.value), default=1.0)
    for index, bar in enumerate(bars):
        top = _HEAD + _ROW * index
        if bar.value is None:
            canvas.text((12, top + 3), bar.label, fill=_INK, font=font)
            continue
        end = _LEFT + round((_WIDTH - _LEFT - _RIGHT) * bar.value / longest)
        canvas.text((_LEFT - 8, top + 3), bar.label, fill=_INK, font=font, anchor="ra")
        canvas.rectangle((_LEFT, top + 2, end, top + _ROW - 4), fill=_BAR if bar.ours else _OTHER)
        canvas.text((end + 6, top + 3), f"{bar.value:.4g}  {bar.note}", fill=_INK, font=font)
    image.save(path, format="PNG")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table, with columns aligned for terminals."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (heads, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines) + "\n"


def ratio_table(ratios: Sequence[dict[str, Any]]) -> str:
    """A table of the ratios, their bounds, and whether they are met."""
    rows = []
    for ratio in ratios:
        bound = next(
            (
                f"{word} {ratio[key]:g}"
                for key, word in (("at_most", "at most"), ("at_least", "at least"))
                if ratio[key] is not None
            ),
            "",
        )
        met = {True: "yes", False: "no", None: ""}[ratio["met"]]
        label = f"{ratio['name']} {ratio.get('mode', '')}".strip()
        rows.append((label, f"{ratio['value']:.4g}", number(ratio.get("by_flops")), bound, met))
    return markdown_table(("ratio", "measured", "by FLOPs", "wanted", "met"), rows)


def number(value: float | None, unit: float = 1.0) -> str:
    """A number with four significant digits; "" for None."""
    return "" if value is None else f"{value / unit:.4g}"


def heading(result: dict[str, Any], how: str = "") -> str:
    """The heading above the tables: what was measured, and on which machine."""
    machine, versions, options = result["machine"], result["versions"], result["options"]
    how = how or f"medians of {options['repeats']} rounds in which all take turns"
    text = (
        f"# {result['title']}\n\n{machine['name']}, {options['dtype']}, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}; random weights; {how}.\n"
    )
    small = "\nTiny sizes: this shows that everything runs; the numbers mean nothing.\n"
    return text + (small if options["small"] else "")


def case_title(case: dict[str, Any]) -> str:
    """The title of a case of the JSON."""
    count = case["references"]
    return f"{case['width']}x{case['height']}, {case['frames']} frames, {count} reference{'s' * (count > 1)}"


def gib(size: int | None) -> str:
    """Bytes in GiB."""
    return "not measured" if size is None else f"{size / GIB:.2f}"
