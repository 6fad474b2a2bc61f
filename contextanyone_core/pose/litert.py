"""Running MediaPipe's .tflite models with LiteRT, read from its wheel or a folder without installing it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..late_import import missing

Tensor = NDArray[np.float32]
DOWNLOAD = "pip download --no-deps --python-version 3.11 --only-binary :all: mediapipe==0.10.21"
"""How to get MediaPipe's wheel; for the running Python there may be none (from 3.13 on), and it is not installed."""

_THREADS = 4


def model_bytes(place: Path, name: str) -> bytes:
    """The content of one model file.

    Args:
        place: MediaPipe's wheel (0.10.21 has the files, 0.10.30 and later do not), or a folder that contains them,
            such as the unpacked wheel.
        name: file name, such as `pose_detection.tflite`.

    Raises: InputError if there is no such file, or several.
    """
    try:
        if place.is_dir():
            found = sorted(place.rglob(name))
            _one(found, place, name)
            return found[0].read_bytes()
        with zipfile.ZipFile(place) as wheel:
            names = [entry for entry in wheel.namelist() if entry.rpartition("/")[2] == name]
            _one(names, place, name)
            return wheel.read(names[0])
    except FileNotFoundError as error:
        raise InputError(f"{place} does not exist. {_advice()}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{place} is no wheel that can be read ({error}). {_advice()}") from error


class Model:
    """A network with one picture as input.

    Args:
        content: bytes of the .tflite file.
        shapes: expected shape of each output, under a name that the caller chooses.
        side: height and width of the input picture.

    Raises: MissingDependencyError if the extra `pose` is not installed; InputError if the file is damaged or another
        network.
    """

    def __init__(self, content: bytes, shapes: Mapping[str, tuple[int, ...]], side: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise missing("estimating poses", "ai-edge-litert") from error
        try:
            self._interpreter: Any = Interpreter(model_content=content, num_threads=_THREADS)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"a .tflite file is damaged ({error}). {_advice()}") from error
        taken = self._interpreter.get_input_details()
        given = {tuple(int(n) for n in one["shape"]): one["index"] for one in self._interpreter.get_output_details()}
        if [tuple(one["shape"]) for one in taken] != [(1, side, side, 3)] or not set(shapes.values()) <= given.keys():
            raise InputError(f"a .tflite file is another network than its name says. {_advice()}")
        self._input: int = taken[0]["index"]
        self._outputs = {name: given[shape] for name, shape in shapes.items()}

    def __call__(self, picture: Tensor) -> dict[str, Tensor]:
        """Outputs by name for a picture (side, side, 3)."""
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(picture[None], np.float32))
        self._interpreter.invoke()
        return {name: np.array(self._interpreter.get_tensor(index)) for name, index in self._outputs.items()}


def crop(frame: NDArray[np.uint8], corners: NDArray[np.float64], side: int, *, black: bool) -> Tensor:
    """Crop a rotated rectangle of a frame (H, W, 3) to (side, side, 3) in [0, 1], bilinear as in training.

    Args:
        corners: upper left, upper right and lower left corner of the rectangle, (3, 2) x and y in pixels.
        black: whether pixels outside the frame are black; otherwise the edge is replicated.
    """
    steps = np.arange(side) / side
    right, down = corners[1] - corners[0], corners[2] - corners[0]
    x, y = (corners[0, i] + steps[None, :] * right[i] + steps[:, None] * down[i] for i in (0, 1))
    height, width = frame.shape[:2]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    result = np.zeros((side, side, 3), np.float32)
    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, along in ((top, 1 - (y - top)), (top + 1, y - top)):
            share = across * along
            if black:
                share = share * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
            result += frame[row.clip(0, height - 1), column.clip(0, width - 1)] * share[..., None].astype(np.float32)
    return result / np.float32(255)


def sigmoid(values: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)


def _one(found: list[Any], place: Path, name: str) -> None:
    if len(found) != 1:
        raise InputError(f"{place} holds {'no' if not found else 'several files'} {name}. {_advice()}")


def _advice() -> str:
    return f"Give the wheel ({DOWNLOAD}), or a folder with its .tflite files."
