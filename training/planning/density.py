"""Which noise levels training draws: the density of `flow.sample_sigmas`, in numbers and as a picture."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from contextanyone_core.sampling.flow import SigmaDistribution

_SIZE, _MARGIN = (640, 320), 40
_INK, _LINE, _RULE = (40, 40, 40), (31, 99, 181), (205, 205, 205)


class Levels(NamedTuple):
    """How a training draws its noise levels: `flow.sample_sigmas` has the words."""

    shift: float
    uniform: float
    kind: SigmaDistribution = "logit_normal"


def share_below(sigma: float, levels: Levels) -> float:
    """Share of the training's sigmas below `sigma`, which lies in [0, 1]."""
    if sigma <= 0 or sigma >= 1:
        return float(sigma >= 1)
    place = _unshifted(sigma, levels.shift)
    shares = {
        "logit_normal": 0.5 * (1 + math.erf(_logit(place) / math.sqrt(2))),
        "uniform": place,
        "cosmap": 2 / math.pi * math.atan(place / (1 - place)),
    }
    return (1 - levels.uniform) * shares[levels.kind] + levels.uniform * sigma


def density(sigma: float, levels: Levels) -> float:
    """Density of the training's sigmas at `sigma`, strictly between 0 and 1."""
    place = _unshifted(sigma, levels.shift)
    densities = {
        "logit_normal": math.exp(-0.5 * _logit(place) ** 2) / math.sqrt(2 * math.pi) / (place * (1 - place)),
        "uniform": 1.0,
        "cosmap": 2 / (math.pi * (1 - 2 * place + 2 * place**2)),
    }
    slope = levels.shift / (levels.shift - (levels.shift - 1) * sigma) ** 2  # d place / d sigma
    return (1 - levels.uniform) * densities[levels.kind] * slope + levels.uniform


def quarters(levels: Levels) -> list[float]:
    """Share of each quarter of sigma, the cleanest first, as the log's `sigma_0` to `sigma_3`."""
    edges = [share_below(index / 4, levels) for index in range(5)]
    return [above - below for below, above in pairwise(edges)]


def draw_density(path: Path, levels: Levels) -> None:
    """Write the density as a picture.

    Raises:
        OSError: it cannot be written.
    """
    width, height = _SIZE
    inner = width - 2 * _MARGIN
    values = [density((x + 0.5) / inner, levels) for x in range(inner)]
    image = Image.new("RGB", _SIZE, "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    bottom, scale = height - _MARGIN, (height - 2 * _MARGIN) / max(values)
    for index in range(5):
        x = _MARGIN + inner * index // 4
        canvas.line([(x, _MARGIN), (x, bottom)], fill=_RULE)
        canvas.text((x, bottom + 6), f"{index / 4:g}", fill=_INK, font=font, anchor="ma")
    for index, share in enumerate(quarters(levels)):
        canvas.text(
            (_MARGIN + inner * (2 * index + 1) // 8, _MARGIN), f"{share:.1%}", fill=_INK, font=font, anchor="ms"
        )
    canvas.line([(_MARGIN + x, bottom - value * scale) for x, value in enumerate(values)], fill=_LINE, width=2)
    name = levels.kind.replace("_", "-")
    title = f"training's noise levels: {name}, shift {levels.shift:g}, {levels.uniform:.0%} uniform"
    canvas.text((_MARGIN, 8), title, fill=_INK, font=font)
    canvas.text((width // 2, height - 6), "sigma (0 clean, 1 noise)", fill=_INK, font=font, anchor="ms")
    image.save(path, format="PNG")


def _unshifted(sigma: float, shift: float) -> float:
    """The level that `flow.shift_sigmas` turns into this sigma."""
    return sigma / (shift - (shift - 1) * sigma)


def _logit(level: float) -> float:
    return math.log(level / (1 - level))
