"""A sheet of test characters with their attributes: ``python -m training.world.contact_sheet --out FILE.png``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import ContextAnyoneError, InputError
from training.files import write_png
from training.world.attributes import TEST_SEED_START
from training.world.render import WorldSample, sample

COLUMNS = 6
_SIDE, _TEXT_HEIGHT, _GAP = 192, 64, 6
_INK, _PAPER = (30, 30, 30), (255, 255, 255)

Image = NDArray[np.uint8]


def contact_sheet(seeds: Sequence[int]) -> Image:
    """One tile per seed, six in a row: the clip's first frame over the character's attributes; RGB (H, W, 3) uint8."""
    tiles = [_tile(sample(seed, num_frames=1, size=(_SIDE, _SIDE))) for seed in seeds]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[start : start + COLUMNS], 1) for start in range(0, len(tiles), COLUMNS)]
    return np.concatenate(rows, 0)


def _tile(drawn: WorldSample) -> Image:
    edge = _GAP // 2
    tile = cv2.copyMakeBorder(drawn.video[0], edge, _TEXT_HEIGHT + edge, edge, edge, cv2.BORDER_CONSTANT, value=_PAPER)
    for line, text in enumerate(_label(drawn)):
        at = (edge + 2, edge + _SIDE + 14 + 15 * line)
        cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, _INK, 1, cv2.LINE_AA)
    return np.asarray(tile, np.uint8)


def _label(drawn: WorldSample) -> tuple[str, str, str, str]:
    who, scene = drawn.character, drawn.scene
    worn = "" if who.accessory == "none" else f", {who.accessory}"
    return (
        f"{who.skin} skin, {who.hair_color} {who.hair_style}",
        f"{who.shirt_color} {who.shirt_pattern} shirt",
        f"{who.trousers_color} trousers, {who.body_shape}{worn}",
        f"{scene.action}, {scene.place}, {scene.light}",
    )


def save_png(picture: Image, path: Path) -> None:
    """Write an RGB picture as a PNG.

    Raises:
        InputError: the folder does not exist or the ending is not .png.
    """
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise InputError(f"--out is {path}; it must be a .png file in a folder that exists.")
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
    try:
        write_png(path, picture, options)
    except OSError as error:
        raise InputError(f"{path} could not be written: {error.strerror}.") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sheet; 0 when it is written, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="training.world.contact_sheet", description="A sheet of test characters.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--count", type=int, default=24, help="how many characters (24)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.count < 1:
            raise InputError(f"--count is {arguments.count}; it must be at least 1.")
        seeds = range(TEST_SEED_START, TEST_SEED_START + arguments.count)
        save_png(contact_sheet(seeds), arguments.out)
    except ContextAnyoneError as error:
        sys.stderr.write(f"contact_sheet: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
