"""Which noise levels training draws: the density of `flow.sample_sigmas`, in numbers and as a picture."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_SIZE, _MARGIN = (640, 320), 40
_INK, _LINE, _RULE = (40, 40, 40), (31, 99, 181), (205, 205, 205)


def share_below(sigma: float, shift: float, uniform: float) -> float:
    """Share of the training's sigmas below `sigma`, which lies in [0, 1]."""
    if sigma <= 0 or sigma >= 1:
        return float(sigma >= 1)
    return (1 - uniform) * 0.5 * (1 + math.erf(_normal(sigma, shift) / math.sqrt(2))) + uniform * sigma


def density(sigma: float, shift: float, uniform: float) -> float:
    """Density of the training's sigmas at `sigma`, strictly between 0 and 1."""
    slope = 1 / (sigma * (1 - sigma))  # of the logit; the shift only moves it
    bell = math.exp(-0.5 * _normal(sigma, shift) ** 2) / math.sqrt(2 * math.pi)
    return (1 - uniform) * bell * slope + uniform


def quarters(shift: float, uniform: float) -> list[float]:
    """Share of each quarter of sigma, the cleanest first, as the log's `sigma_0` to `sigma_3`."""
    edges = [share_below(index / 4, shift, uniform) for index in range(5)]
    return [above - below for below, above in pairwise(edges)]


def draw_density(path: Path, shift: float, uniform: float) -> None:
    """Write the density as a picture.

    Raises:
        OSError: it cannot be written.
    """
    width, height = _SIZE
    inner = width - 2 * _MARGIN
    values = [density((x + 0.5) / inner, shift, uniform) for x in range(inner)]
    image = Image.new("RGB", _SIZE, "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    bottom, scale = height - _MARGIN, (height - 2 * _MARGIN) / max(values)
    for index in range(5):
        x = _MARGIN + inner * index // 4
        canvas.line([(x, _MARGIN), (x, bottom)], fill=_RULE)
        canvas.text((x, bottom + 6), f"{index / 4:g}", fill=_INK, font=font, anchor="ma")
    for index, share in enumerate(quarters(shift, uniform)):
        canvas.text(
            (_MARGIN + inner * (2 * index + 1) // 8, _MARGIN), f"{share:.1%}", fill=_INK, font=font, anchor="ms"
        )
    canvas.line([(_MARGIN + x, bottom - value * scale) for x, value in enumerate(values)], fill=_LINE, width=2)
    title = f"training's noise levels: logit-normal, shift {shift:g}, {uniform:.0%} uniform"
    canvas.text((_MARGIN, 8), title, fill=_INK, font=font)
    canvas.text((width // 2, height - 6), "sigma (0 clean, 1 noise)", fill=_INK, font=font, anchor="ms")
    image.save(path, format="PNG")


def _normal(sigma: float, shift: float) -> float:
    """The standard normal value that `sample_sigmas` turns into this sigma."""
    return math.log(sigma / (1 - sigma)) - math.log(shift)
