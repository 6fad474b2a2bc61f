"""Where a run's numbers and samples go beside log.jsonl: tensorboard, Weights & Biases (`run.trackers`)."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from contextanyone_core.errors import MissingDependencyError

TrackerName = Literal["tensorboard", "wandb"]
_PICTURES = (".png", ".gif", ".webp")
_FRAMES = 5  # of a clip, side by side


class Tracker(Protocol):
    """One place that keeps scalars and pictures by step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep a step's numbers."""
        ...

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Keep a picture, uint8 (H, W, 3)."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in DIR/tensorboard. Steps that a resumed run does again replace the old ones."""

    def __init__(self, folder: Path, start: int) -> None:
        writer = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=start or None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep a step's numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Keep a picture, uint8 (H, W, 3)."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, named as ours, in DIR/wandb; a resumed run goes on with it."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self._library = _library("wandb", "wandb")
        identity = folder / "wandb.id"
        if not identity.is_file():
            identity.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
        self._run = self._library.init(
            project="contextanyone",
            name=name,
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep a step's numbers."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Keep a picture, uint8 (H, W, 3)."""
        self._run.log({name: self._library.Image(picture)}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class Trackers:
    """All trackers of a run; a context that closes them.

    Raises:
        MissingDependencyError: a tracker's library is not installed.
    """

    def __init__(self, names: tuple[TrackerName, ...], folder: Path, config: Mapping[str, Any], start: int) -> None:
        self._all: list[Tracker] = []
        for name in names:
            made = TensorBoard(folder, start) if name == "tensorboard" else WandB(folder, config["run"]["name"], config)
            self._all.append(made)

    def step(self, record: Mapping[str, Any]) -> None:
        """Keep the numbers of a line of log.jsonl."""
        values = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        for tracker in self._all:
            tracker.scalars({name: value for name, value in values.items() if name != "step"}, record["step"])

    def samples(self, folder: Path, step: int) -> None:
        """Keep the pictures of a folder of samples; of a clip, five frames side by side."""
        if not self._all:
            return
        shown = sorted(path for path in folder.iterdir() if path.suffix in (*_PICTURES, ".mp4"))
        for number, path in enumerate(shown):
            picture = read(path)
            for tracker in self._all:
                tracker.picture(f"samples/{number}", picture, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for tracker in self._all:
                stack.callback(tracker.close)


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


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependencyError(
            f"run.trackers names {package}, which is not installed: pip install {package}, or leave it out."
        ) from None
