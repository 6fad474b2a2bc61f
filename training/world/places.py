"""Backgrounds: five places, each with a little variety from clip to clip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.world.canvas import Canvas, Color

GROUND = 0.90
"""Where feet stand, as a share of the picture's height."""


def _sky(canvas: Canvas, horizon: float, light: str) -> None:
    top, bottom = {
        "day": ((98, 178, 246), (196, 228, 252)),
        "sunset": ((236, 116, 92), (255, 206, 128)),
        "night": ((14, 18, 54), (44, 54, 110)),
    }[light]
    canvas.gradient(0, horizon, top, bottom)


def _lamp_of_the_sky(canvas: Canvas, rng: np.random.Generator, light: str) -> None:
    h, w = canvas.height, canvas.width
    color: Color = {"day": (255, 244, 170), "sunset": (255, 240, 190), "night": (238, 240, 226)}[light]
    x = w * (0.14 + 0.1 * rng.random()) if rng.random() < 0.5 else w * (0.76 + 0.1 * rng.random())
    y = h * (0.30 if light == "sunset" else 0.12)
    radius = 0.065 * min(h, w)
    canvas.ellipse((x, y), (radius, radius), color)


def _beach(canvas: Canvas, rng: np.random.Generator, light: str) -> None:
    h, w = canvas.height, canvas.width
    horizon = h * (0.46 + 0.04 * rng.random())
    _sky(canvas, horizon, light)
    _lamp_of_the_sky(canvas, rng, light)
    canvas.gradient(horizon, h * 0.66, (28, 118, 190), (70, 176, 214))
    canvas.gradient(h * 0.66, h, (246, 224, 166), (232, 202, 140))
    x = w * (0.12 if rng.random() < 0.5 else 0.88)
    unit = min(h, w)
    canvas.limb((x, h * 0.82), (x, h * 0.52), unit * 0.016, (150, 110, 70))
    canvas.polygon(
        [(x - unit * 0.16, h * 0.54), (x, h * 0.44), (x + unit * 0.16, h * 0.54)],
        (232, 84, 78) if rng.random() < 0.5 else (250, 250, 250),
    )


def _tree(canvas: Canvas, x: float, ground: float, size: float) -> None:
    canvas.limb((x, ground), (x, ground - size * 0.5), size * 0.12, (112, 76, 44))
    for dx, dy, r in ((-0.16, -0.52, 0.2), (0.16, -0.52, 0.2), (0.0, -0.72, 0.24)):
        canvas.ellipse((x + dx * size, ground + dy * size), (r * size, r * size), (44, 124, 54))


def _park(canvas: Canvas, rng: np.random.Generator, light: str) -> None:
    h, w = canvas.height, canvas.width
    horizon = h * (0.54 + 0.04 * rng.random())
    _sky(canvas, horizon, light)
    _lamp_of_the_sky(canvas, rng, light)
    canvas.gradient(horizon, h, (132, 196, 92), (84, 158, 66))
    canvas.polygon([(w * 0.36, h), (w * 0.64, h), (w * 0.54, horizon), (w * 0.48, horizon)], (214, 196, 152))
    for side in (0.1 + 0.05 * rng.random(), 0.88 + 0.05 * rng.random()):
        _tree(canvas, w * side, horizon + h * 0.1, min(h, w) * (0.44 + 0.1 * rng.random()))


def _city(canvas: Canvas, rng: np.random.Generator, light: str) -> None:
    h, w = canvas.height, canvas.width
    horizon = h * 0.68
    _sky(canvas, horizon, light)
    left, colors = 0.0, ((150, 120, 116), (122, 134, 156), (168, 156, 136), (112, 112, 122))
    glass: Color = (255, 228, 130) if light == "night" else (200, 222, 238)
    while left < w:
        width = w * (0.2 + 0.08 * rng.random())
        top = h * (0.12 + 0.28 * rng.random())
        canvas.rectangle(left, top, left + width, horizon, colors[int(rng.integers(len(colors)))])
        for row in np.arange(top + h * 0.05, horizon - h * 0.07, h * 0.12):
            for column in (0.18, 0.58):
                x = left + width * column
                canvas.rectangle(x, row, x + width * 0.24, row + h * 0.06, glass)
        left += width
    canvas.gradient(horizon, h * 0.76, (176, 174, 172), (164, 162, 160))
    canvas.gradient(h * 0.76, h, (92, 94, 100), (74, 76, 82))


def _room(canvas: Canvas, rng: np.random.Generator, light: str) -> None:
    h, w = canvas.height, canvas.width
    walls: tuple[Color, ...] = ((232, 212, 180), (204, 222, 208), (222, 206, 222))
    wall = walls[int(rng.integers(len(walls)))]
    canvas.gradient(0, h * 0.70, wall, wall)
    canvas.gradient(h * 0.70, h, (176, 122, 74), (150, 98, 56))
    canvas.rectangle(0, h * 0.69, w, h * 0.72, (250, 248, 242))
    outside: Color = {"day": (150, 208, 250), "sunset": (250, 164, 104), "night": (20, 26, 70)}[light]
    left = w * (0.06 if rng.random() < 0.5 else 0.70)
    canvas.rectangle(left, h * 0.14, left + w * 0.24, h * 0.46, (252, 252, 248))
    canvas.rectangle(left + w * 0.02, h * 0.16, left + w * 0.22, h * 0.44, outside)
    canvas.ellipse((w * 0.5, h * 0.93), (w * 0.40, h * 0.055), (186, 62, 66) if rng.random() < 0.5 else (62, 92, 150))


def _snow(canvas: Canvas, rng: np.random.Generator, light: str) -> None:
    h, w = canvas.height, canvas.width
    horizon = h * (0.58 + 0.03 * rng.random())
    _sky(canvas, horizon, light)
    shift = 0.2 * rng.random()
    for x, peak in ((0.1 + shift, 0.22), (0.75 + shift, 0.30)):
        canvas.polygon([(w * (x - 0.34), horizon), (w * x, h * peak), (w * (x + 0.34), horizon)], (128, 142, 172))
        canvas.polygon(
            [(w * (x - 0.1), h * (peak + 0.11)), (w * x, h * peak), (w * (x + 0.1), h * (peak + 0.11))], (248, 250, 255)
        )
    canvas.gradient(horizon, h, (236, 242, 252), (216, 226, 242))
    x = w * (0.1 if rng.random() < 0.5 else 0.9)
    unit = min(h, w)
    for level in range(3):
        y = h * 0.72 - level * unit * 0.10
        half = unit * (0.15 - 0.035 * level)
        canvas.polygon([(x - half, y), (x + half, y), (x, y - unit * 0.17)], (36, 96, 76))


_PLACES: dict[str, Callable[[Canvas, np.random.Generator, str], None]] = {
    "beach": _beach,
    "park": _park,
    "city": _city,
    "room": _room,
    "snow": _snow,
}


def draw_place(canvas: Canvas, place: str, light: str, rng: np.random.Generator) -> None:
    """Fill the canvas with a place; ``rng`` decides the small varieties (where the tree stands, wall colour ...)."""
    _PLACES[place](canvas, rng, light)
