"""Faces of frames as descriptors: by dlib, or by an ArcFace pack of ONNX files. Each has its name, none is mixed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError, MissingDependencyError
from evaluation.metrics.frames import file_digest

Frames = NDArray[np.uint8]
Descriptor = NDArray[np.float32]

_PADDING = 0.25  # of the picture's sides, in grey: for a face that fills the picture, tried second
_GREY = 128


class FaceModel(Protocol):
    """Finds the largest face of a picture and describes it."""

    name: str
    """Part of the metrics' names."""
    revision: str

    def describe(self, frame: Frames) -> Descriptor | None:
        """The descriptor (D,) of the largest face in a picture (H, W, 3), None without a face."""

    def similarity(self, one: Descriptor, other: Descriptor) -> float:
        """How alike two faces are; 1 is the same picture."""


class DlibFaces:
    """dlib's detector and its ResNet of 128 numbers, from the package face-recognition-models (CC0).

    Similarity is 1 - distance: the usual limit of the same person is a distance of 0.6, thus 0.4.

    Raises: MissingDependencyError without the packages.
    """

    name = "dlib"

    def __init__(self) -> None:
        self._dlib: Any = optional_module("dlib", "dlib-bin")
        folder = _package_folder("face_recognition_models") / "models"
        points = folder / "shape_predictor_5_face_landmarks.dat"
        weights = folder / "dlib_face_recognition_resnet_model_v1.dat"
        self._detector = self._dlib.get_frontal_face_detector()
        self._points = self._dlib.shape_predictor(str(points))
        self._network = self._dlib.face_recognition_model_v1(str(weights))
        self.revision = file_digest(weights)

    def describe(self, frame: Frames) -> Descriptor | None:
        """The largest face, searched at double size."""
        for picture in (frame, padded(frame)):
            picture = np.ascontiguousarray(picture)
            found = self._detector(picture, 1)
            if len(found):
                box = max(found, key=lambda one: one.area())
                shape = self._points(picture, box)
                return np.asarray(self._network.compute_face_descriptor(picture, shape), np.float32)
        return None

    def similarity(self, one: Descriptor, other: Descriptor) -> float:
        """1 - Euclidean distance."""
        return 1.0 - float(np.linalg.norm(one.astype(np.float64) - other.astype(np.float64)))


def load_faces(choice: str) -> FaceModel:
    """The face model that --faces names: `dlib`, or a folder with an ArcFace pack.

    Raises: InputError for anything else; MissingDependencyError without the packages.
    """
    if choice == "dlib":
        return DlibFaces()
    from evaluation.metrics.arcface import ArcFacePack

    folder = Path(choice)
    if not folder.is_dir():
        raise InputError(f"--faces is {choice}; it is dlib, or a folder with an ArcFace pack of ONNX files.")
    return ArcFacePack(folder)


def padded(frame: Frames) -> Frames:
    """A picture with a grey border of a quarter of its sides."""
    rows, columns = (round(_PADDING * side) for side in frame.shape[:2])
    return np.pad(frame, ((rows, rows), (columns, columns), (0, 0)), constant_values=_GREY)


def face_numbers(name: str, similarities: Sequence[float | None]) -> dict[str, float]:
    """The three numbers of a clip.

    Args:
        name: of the face model.
        similarities: to the reference's face, of each frame; None without a face.
    """
    found = [value for value in similarities if value is not None]
    count = len(similarities)
    numbers = {f"face_{name}_found": len(found) / count, f"face_{name}_all": sum(found) / count}
    return numbers | ({f"face_{name}": sum(found) / len(found)} if found else {})


def optional_module(name: str, package: str) -> Any:
    """A module, imported now. Raises MissingDependencyError that names the pip command."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"--faces needs {package}; run: pip install {package}") from error


def _package_folder(name: str) -> Path:
    """The folder of a package of data, found without importing it (its import needs pkg_resources)."""
    from importlib.util import find_spec

    spec = find_spec(name)
    if spec is None or spec.origin is None:
        package = name.replace("_", "-")
        raise MissingDependencyError(f"--faces dlib needs {package}; run: pip install {package}")
    return Path(spec.origin).parent
