"""Where a run's numbers and samples go beside log.jsonl: tensorboard, Weights & Biases (`run.trackers`), by
accelerate's trackers."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import cv2
import numpy as np
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError, MissingDependencyError

TrackerName = Literal["tensorboard", "wandb"]
_PICTURES = (".png", ".gif", ".webp")
_FRAMES = 5  # of a clip, side by side


class Trackers:
    """All trackers of a run, as a context that closes them. A resumed run continues them.

    Args:
        folder: of the run. config: of the run. start: steps done before; in tensorboard, repeated steps
            replace the old ones.

    Raises:
        MissingDependencyError: a tracker's library is not installed.
        InputError: Weights & Biases does not start.
    """

    def __init__(self, names: tuple[TrackerName, ...], folder: Path, config: Mapping[str, Any], start: int) -> None:
        self._all: dict[TrackerName, GeneralTracker] = {}
        for name in names:
            PartialState()  # required by accelerate's logger, which its wandb tracker uses
            if name == "tensorboard":
                tracker = TensorBoardTracker("tensorboard", folder, purge_step=start or None)
            else:
                named = {"name": config["run"]["name"], "id": _identity(folder), "resume": "allow"}
                tracker = WandBTracker("contextanyone", **named, dir=str(folder), config=dict(config))
            _begin(name, tracker)
            self._all[name] = tracker

    def step(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a line of log.jsonl."""
        values = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        step = values.pop("step")
        for tracker in self._all.values():
            tracker.log(values, step=int(step))

    def samples(self, folder: Path, step: int) -> None:
        """Log the pictures in a folder of samples; of a clip, five frames side by side."""
        if not self._all:
            return
        shown = sorted(path for path in folder.iterdir() if path.suffix in (*_PICTURES, ".mp4"))
        for number, path in enumerate(shown):
            pictures = {f"samples/{number}": read(path)[None]}
            for name, tracker in self._all.items():
                tracker.log_images(pictures, step, **({"dataformats": "NHWC"} if name == "tensorboard" else {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for tracker in self._all.values():
                stack.callback(tracker.finish)


def read(path: Path) -> NDArray[np.uint8]:
    """A picture, or up to five frames of a clip side by side: uint8 (H, W, 3)."""
    frames = _film(path) if path.suffix == ".mp4" else _pictures(path)
    chosen = sorted({round(place) for place in np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames)))})
    return np.concatenate([frames[index] for index in chosen], axis=1)


def _pictures(path: Path) -> list[NDArray[np.uint8]]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def _film(path: Path) -> list[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(str(path))
    frames: list[NDArray[np.uint8]] = []
    while (found := capture.read())[0]:
        frames.append(np.ascontiguousarray(found[1][..., ::-1], dtype=np.uint8))
    capture.release()
    return frames or [np.zeros((1, 1, 3), np.uint8)]


def _begin(name: TrackerName, tracker: GeneralTracker) -> None:
    refused: tuple[type[Exception], ...] = ()
    try:
        if name == "wandb":
            refused = (importlib.import_module("wandb").Error,)
        tracker.start()
    except ImportError:
        raise MissingDependencyError(
            f"run.trackers names {name}, which is not installed: pip install {name}, or leave it out."
        ) from None
    except refused as error:
        raise InputError(
            f"run.trackers: wandb does not start: {error} Or set WANDB_MODE=offline, or leave wandb out."
        ) from None


def _identity(folder: Path) -> str:
    """The run's id at Weights & Biases, stored in its folder."""
    kept = folder / "wandb.id"
    if not kept.is_file():
        write_text(kept, uuid.uuid4().hex + "\n")
    return kept.read_text(encoding="utf-8").strip()
