"""Contact sheets: eight frames of a row with the boxes of people and the outline of the mask."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.models.picture_files import read_mask, write_picture
from data_pipeline.pixels.decode import frames_of
from data_pipeline.rows import Row

FRAMES = 8
_LONG_SIDE = 192  # pixels of a frame
_BOX, _OUTLINE = (255, 196, 0), (0, 220, 255)


def write_sheet(path: Path, root: Path, row: Row) -> None:
    """Write a row's sheet as JPEG: its frames side by side. Raises: as `frames_of`, OSError where it has none."""
    if row.stop <= row.start:
        raise FileNotFoundError(f"{row.id} has no frame.")
    wanted = sorted(set(np.linspace(row.start, row.stop - 1, FRAMES).round().astype(int).tolist()))
    people = json.loads((root / row.paths["people"]).read_text(encoding="utf-8")) if "people" in row.paths else None
    frames = []
    for number, frame in enumerate(frames_of(root / row.video, _LONG_SIDE, row.start), row.start):
        if number in wanted:
            drawn = np.ascontiguousarray(frame).copy()
            if people is not None:
                _draw_boxes(drawn, [one["box"] for one in people[number - row.start]])
            if "mask" in row.paths:
                _draw_outline(drawn, root / row.paths["mask"] / f"{number:05d}.png")
            frames.append(drawn)
        if number >= wanted[-1]:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, np.concatenate(frames, axis=1))


def _draw_boxes(frame: NDArray[np.uint8], boxes: list[list[float]]) -> None:
    height, width = frame.shape[:2]
    for x0, y0, x1, y1 in boxes:
        corners = (round(x0 * width), round(y0 * height)), (round(x1 * width) - 1, round(y1 * height) - 1)
        cv2.rectangle(frame, *corners, _BOX, 1)


def _draw_outline(frame: NDArray[np.uint8], path: Path) -> None:
    stored = read_mask(path)
    if stored is None:
        return
    height, width = frame.shape[:2]
    mask = cv2.resize(stored, (width, height), interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(frame, found, -1, _OUTLINE, 1)
