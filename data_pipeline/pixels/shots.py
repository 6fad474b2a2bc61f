"""Probe and shots: hard cuts by PySceneDetect, dissolves by a second pass over 8 to 16 frames; long shots in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.media.video_io import FPS
from data_pipeline.pixels.decode import frames_of
from data_pipeline.rows import Drop, Row
from data_pipeline.stage import Stage
from training.data.video import MediaError, video_frames, video_times
from training.data.video_cuts import hard_cuts
from training.data.video_windows import cut_windows, frames_available

LENGTHS = (33, 49, 81)
"""Frames at 16 a second that a row has: the default buckets of training that are clips."""
_THUMB = 16  # pixels: so small that people hardly count, and places do


@dataclass(frozen=True)
class Probe(Stage):
    """Counts frames by decoding them.

    Drops what is no video, not to be shown faithfully, or changes its size, as training does: `undecodable`.
    """

    name: ClassVar[str] = "probe"
    version: ClassVar[int] = 3

    def __call__(self, row: Row) -> Row | Drop:
        """The row of the whole video, with its size and mean rate as it is shown. Raises OSError if it is missing."""
        path = self.place(row.video)
        path.stat()
        try:
            sizes = [picture.shape[:2] for picture in video_frames(path)]
            if not sizes:
                return Drop("no_frames")
            times = video_times(path)
        except MediaError as error:
            return Drop("undecodable", why=str(error).replace(str(path), row.source))
        changes = next((number for number, size in enumerate(sizes) if size != sizes[0]), None)
        if changes is not None:
            return Drop("undecodable", why=f"{row.source} has frames of different sizes, from frame {changes} on.")
        (height, width), count = sizes[0], len(sizes)
        seconds = times[-1] - times[0]
        rate = (len(times) - 1) / seconds if seconds > 0 else FPS  # what a file states may be 1000 (browsers' WebM)
        return row.span(0, count).scored(self.name, frames=count, fps=rate, width=width, height=height)


@dataclass(frozen=True)
class Shots(Stage):
    """The rows of each shot, as `shot_rows` cuts them. Frames of a dissolve belong to none.

    Attributes:
        lengths: of a row, in frames at 16 a second.
        threshold: of PySceneDetect's ContentDetector.
        min_length: frames; a shorter shot joins the next one, and the last one may be shorter.
        windows: lengths in frames in which a dissolve is looked for.
        shortest: frames of a dissolve; what is blended in fewer is a movement or a light.
        min_change: mean difference (0 to 255) between a window's ends that is a change of place.
        max_residual: the share of this change that a blend of both ends may leave unexplained.
    """

    name: ClassVar[str] = "shots"
    version: ClassVar[int] = 2
    threshold: float = 27.0
    min_length: int = 9
    windows: tuple[int, ...] = (9, 13, 17)
    shortest: int = 6
    min_change: float = 18.0
    max_residual: float = 0.25
    lengths: tuple[int, ...] = LENGTHS

    def __call__(self, row: Row) -> list[Row]:
        """The shots' rows in order; a video without cuts is one shot."""
        path = self.place(row.video)
        cuts = hard_cuts(video_frames(path), self.threshold, self.min_length)
        thumbs = np.stack([_thumb(picture) for picture in frames_of(path, 128)])
        dissolves = self.dissolves(thumbs)
        hard = [(cut, cut) for cut in cuts if all(not a - 2 <= cut <= b + 2 for a, b in dissolves)]
        gaps = sorted([*hard, *dissolves])  # a cut that was found within a dissolve is a part of it
        starts = [row.start, *(after for _, after in gaps)]
        stops = [*(before for before, _ in gaps), row.stop]
        spans = [(a, b) for a, b in zip(starts, stops, strict=True) if b > a]
        return shot_rows(row, spans, video_times(path), self.lengths)

    def dissolves(self, thumbs: NDArray[np.float32]) -> list[tuple[int, int]]:
        """Spans (last whole frame + 1, first whole frame) in which one place is blended into another.

        Args:
            thumbs: (T, N), all frames.
        """
        found: list[tuple[float, int, int]] = []
        for window in self.windows:
            for start in range(len(thumbs) - window):
                stop = start + window
                change, residual = _blend(thumbs[start : stop + 1])
                if change >= self.min_change and residual <= self.max_residual:
                    found.append((-change, start, stop))
        return [(start, stop) for start, stop in _disjoint(found, thumbs) if stop - start >= self.shortest]


def shot_rows(row: Row, spans: Sequence[tuple[int, int]], times: Sequence[float], lengths: Sequence[int]) -> list[Row]:
    """The rows of shots, cut as `make_manifest.py` cuts clips: what describes a row is of what training uses of it.

    Scores: `frames` of the row at 16 a second, `start` and `stop` of the whole shot in frames of the video, `count` of
    the video's shots. A shot that fills none of the lengths is one row.

    Args:
        row: of the whole video. spans: shots (first frame, after the last). times: seconds of the video's frames.
    """
    rows = []
    for start, stop in spans:
        whole = row.scored("shots", start=start, stop=stop, count=len(spans))
        for first, count in cut_windows(times[start:stop], lengths).parts:
            after = stop if count is None else start + first + count
            part = whole.span(start + first, after)
            rows.append(part.scored("shots", frames=frames_available(times[part.start : after])))
    return rows


def _thumb(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(picture, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA), np.float32).reshape(-1)


def _blend(frames: NDArray[np.float32]) -> tuple[float, float]:
    """How much the ends differ (mean, 0 to 255), and the share of it that no blend of them explains; 1 for a cut."""
    first, last = frames[0], frames[-1]
    way = last - first
    change = float(np.abs(way).mean())
    if change == 0:
        return 0.0, 1.0
    inner = frames[1:-1]
    share = (inner - first) @ way / float(way @ way)
    unexplained = float(np.abs(inner - first - share[:, None] * way).mean()) / change
    between = float(((share > 0.1) & (share < 0.9)).mean())
    steps = np.diff([0.0, *share, 1.0])
    steady = bool((steps > -0.05).all() and (steps < 0.35).all())  # a hard cut is one step of nearly all
    return change, unexplained if between >= 0.4 and steady else 1.0


def _disjoint(found: list[tuple[float, int, int]], thumbs: NDArray[np.float32]) -> list[tuple[int, int]]:
    """The strongest of windows that overlap, each shrunk to the frames that are between both places."""
    kept: list[tuple[int, int]] = []
    for _, start, stop in sorted(found):
        if all(stop <= a or start >= b for a, b in kept):
            kept.append((start, stop))
    spans = []
    for start, stop in kept:
        way = thumbs[stop] - thumbs[start]
        share = (thumbs[start : stop + 1] - thumbs[start]) @ way / float(way @ way)
        inside = np.flatnonzero((share > 0.04) & (share < 0.96))
        spans.append((start + int(inside[0]), start + int(inside[-1]) + 1))
    return spans
