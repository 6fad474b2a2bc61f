"""Contact sheet: references and frames of one clip in one labelled picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 5
MAX_FRAMES = 9
MIN_TILE = 128
_LABEL = 18
_MARGIN = 6
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def contact_sheet(references: Sequence[NDArray[np.uint8]], frames: NDArray[np.uint8]) -> Image.Image:
    """The references, then up to nine evenly spaced frames including the first and last, five tiles per row.

    Args:
        references: uint8 (H, W, 3), any sizes; each is fitted into a tile of the frames' size.
        frames: uint8 (T, H, W, 3).
    """
    _, height, width, _ = frames.shape
    factor = max(1, -(-MIN_TILE // min(width, height)))
    tile = (width * factor, height * factor)
    labelled = [(_reference_label(i, len(references)), picture) for i, picture in enumerate(references)]
    labelled += [(f"frame {index}", frames[index]) for index in frame_choice(len(frames))]
    cells = [_cell(label, _fit(picture, tile)) for label, picture in labelled]
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    step_x, step_y = cells[0].width + _MARGIN, cells[0].height + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), _PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        sheet.paste(cell, (_MARGIN + column * step_x, _MARGIN + row * step_y))
    return sheet


def frame_choice(num_frames: int) -> list[int]:
    """At most nine evenly spaced indices, including the first and last."""
    return sorted({round(place) for place in np.linspace(0, num_frames - 1, min(MAX_FRAMES, num_frames))})


def _reference_label(index: int, count: int) -> str:
    return "reference" if count == 1 else f"reference {index + 1}"


def _fit(picture: NDArray[np.uint8], tile: tuple[int, int]) -> Image.Image:
    """The whole picture, scaled to fit, centred on a white tile."""
    image = Image.fromarray(picture)
    factor = min(tile[0] / image.width, tile[1] / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    fitted = Image.new("RGB", tile, _PAPER)
    fitted.paste(image.resize(size, Image.Resampling.LANCZOS), ((tile[0] - size[0]) // 2, (tile[1] - size[1]) // 2))
    return fitted


def _cell(label: str, picture: Image.Image) -> Image.Image:
    cell = Image.new("RGB", (picture.width, picture.height + _LABEL), _PAPER)
    cell.paste(picture, (0, _LABEL))
    ImageDraw.Draw(cell).text((2, 2), label, fill=_INK, font=ImageFont.load_default(12))
    return cell
