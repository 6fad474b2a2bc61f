"""The kit `small`: real models that come inside packages, for a plain CPU. They are weak: see docs/DATA_PIPELINE.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.pose.blazepose import BlazePose
from contextanyone_core.pose.selfie import SelfieSegmenter
from data_pipeline.licences import ModelCard
from data_pipeline.models.pictures import Parts, Picture, Vector
from data_pipeline.models.protocols import Box, Verdict
from data_pipeline.models.tracks import Found
from data_pipeline.rows import digest

_FACE_LIMIT = 0.6  # dlib's own, of the distance of two faces of one person
_BODY_SCORE = 1.0  # of the HOG detector: street lamps and bow ties have up to 0.9
_FACE_SCORE = 0.0
_LEAST_SIDE = 320  # pixels: smaller pictures are enlarged for the detectors
_ALIKE = 0.5  # intersection of colour histograms of the same hair or clothes
_INSTALL = 'pip install -e ".[small]"'


def weights_of(name: str) -> str:
    """A file of face-recognition-models, which is not imported: it needs setuptools' pkg_resources."""
    package = find_spec("face_recognition_models")
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(f"The chain small needs face-recognition-models. Run: {_INSTALL}")
    path = Path(next(iter(package.submodule_search_locations))) / "models" / name
    if not path.is_file():
        raise InputError(f"{path} does not exist; install face-recognition-models anew.")
    return str(path)


def no_people_detector() -> MissingDependencyError:
    """The error of OpenCV 5."""
    return MissingDependencyError(f"OpenCV {cv2.__version__} has no people detector; OpenCV 4 has one. Run: {_INSTALL}")


def _dlib() -> Any:
    try:
        import dlib
    except ImportError:
        raise MissingDependencyError(f"The chain small needs dlib. Run: {_INSTALL}") from None
    return dlib


def _enlarged(picture: Picture) -> Picture:
    times = int(np.ceil(_LEAST_SIDE / min(picture.shape[:2])))
    size = (picture.shape[1] * times, picture.shape[0] * times)
    return picture if times == 1 else np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)


class FacesAndBodies:
    """Faces by dlib's HOG detector, bodies by OpenCV's; a face within a body is that person's.

    Raises: MissingDependencyError if a package is missing, or OpenCV is 5, which has no people detector.
    """

    def __init__(self) -> None:
        if not hasattr(cv2, "HOGDescriptor"):
            raise no_people_detector()
        self._faces = _dlib().get_frontal_face_detector()
        self._bodies = cv2.HOGDescriptor()
        self._bodies.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())

    def people(self, picture: Picture) -> list[Found]:
        """As `Detector.people`."""
        large = _enlarged(picture)
        bodies = self._people(large)
        for box, score in self.faces(large):
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            if not any(b.box[0] <= middle[0] <= b.box[2] and b.box[1] <= middle[1] <= b.box[3] for b in bodies):
                bodies.append(Found(_body_of(box), score))
        return bodies

    def faces(self, picture: Picture) -> list[tuple[Box, float]]:
        """Faces with scores, as shares of the picture."""
        height, width = picture.shape[:2]
        found, scores, _ = self._faces.run(np.ascontiguousarray(picture), 0, _FACE_SCORE)
        return [
            ((one.left() / width, one.top() / height, one.right() / width, one.bottom() / height), float(score))
            for one, score in zip(found, scores, strict=True)
        ]

    def _people(self, picture: Picture) -> list[Found]:
        height, width = picture.shape[:2]
        boxes, weights = self._bodies.detectMultiScale(np.ascontiguousarray(picture[..., ::-1]), winStride=(8, 8))
        found = [
            Found((x / width, y / height, (x + w) / width, (y + h) / height), float(weight))
            for (x, y, w, h), weight in zip(boxes, np.ravel(weights), strict=True)
            if weight >= _BODY_SCORE
        ]
        kept: list[Found] = []
        for one in sorted(found, key=lambda one: -one.score):
            if all(_within(one.box, other.box) < 0.5 for other in kept):
                kept.append(one)
        return kept


def _within(first: Box, second: Box) -> float:
    """The intersection over the smaller of both boxes."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(0.0, across) * max(0.0, down) / smaller if smaller > 0 else 0.0


def _body_of(face: Box) -> Box:
    """Where the person of a face is likely to be: three faces wide, down to seven faces."""
    width, height = face[2] - face[0], face[3] - face[1]
    box = (face[0] - width, face[1] - 0.5 * height, face[2] + width, face[3] + 6 * height)
    x0, y0, x1, y1 = (float(value) for value in np.clip(box, 0, 1))
    return x0, y0, x1, y1


class FaceVectors:
    """dlib's face recognition network: 128 numbers, the same person within 0.6. Raises: as `FacesAndBodies`."""

    limit = _FACE_LIMIT

    def __init__(self, detector: FacesAndBodies) -> None:
        dlib = _dlib()
        self._detector, self._rectangle = detector, dlib.rectangle
        self._landmarks = dlib.shape_predictor(weights_of("shape_predictor_5_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(weights_of("dlib_face_recognition_resnet_model_v1.dat"))

    def vector(self, picture: Picture, box: Box) -> Vector | None:
        """Of the largest face within the box; None where there is none."""
        large = _enlarged(picture)
        height, width = large.shape[:2]
        faces = [face for face, _ in self._detector.faces(large) if _within(face, box) > 0.5]
        if not faces:
            return None
        x0, y0, x1, y1 = max(faces, key=lambda face: (face[2] - face[0]) * (face[3] - face[1]))
        corners = (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
        shape = self._landmarks(np.ascontiguousarray(large), self._rectangle(*corners))
        return np.asarray(self._network.compute_face_descriptor(np.ascontiguousarray(large), shape), np.float32)


class SelfieMasks:
    """MediaPipe's selfie segmentation within the box and a margin."""

    def __init__(self, models: Path) -> None:
        self._segmenter = SelfieSegmenter(models)

    def mask(self, picture: Picture, box: Box) -> Picture:
        """As `Segmenter.mask`."""
        height, width = picture.shape[:2]
        margin = 0.1 * max(box[2] - box[0], box[3] - box[1])
        x0, y0 = (max(0, int((value - margin) * side)) for value, side in zip(box[:2], (width, height), strict=True))
        x1, y1 = (
            min(side, int((value + margin) * side) + 1) for value, side in zip(box[2:], (width, height), strict=True)
        )
        whole = np.zeros((height, width), np.uint8)
        inside = next(iter(self._segmenter.segment([np.ascontiguousarray(picture[y0:y1, x0:x1])])))
        whole[y0:y1, x0:x1] = np.where(inside > 0.5, 255, 0)
        return whole


class NeutralCaptions:
    """No model: what is true of every row, and says no more than that there is a person."""

    def captions(self, frames: Sequence[Picture]) -> tuple[str, str]:
        """As `Captioner.captions`."""
        return "A person.", "The person is moving."


class FacesAndColours:
    """The same person by the faces; hair and outfit by the colours above and below them. Weak where light changes."""

    def __init__(self, detector: FacesAndBodies, vectors: FaceVectors) -> None:
        self._detector, self._vectors = detector, vectors

    def verdict(self, first: Picture, second: Picture) -> Verdict | None:
        """As `Judge.verdict`; None where a picture has no face."""
        person, other = self._described(first), self._described(second)
        if person is None or other is None:
            return None
        (face, hair, outfit), (its_face, its_hair, its_outfit) = person, other
        near = float(np.linalg.norm(face - its_face)) < _FACE_LIMIT
        return Verdict(near, _same(hair, its_hair), _same(outfit, its_outfit))

    def _described(self, picture: Picture) -> tuple[Vector, Vector, Vector] | None:
        large = _enlarged(picture)
        faces = self._detector.faces(large)
        vector = self._vectors.vector(picture, (0.0, 0.0, 1.0, 1.0))
        if not faces or vector is None:
            return None
        (x0, y0, x1, y1), _ = max(faces, key=lambda face: (face[0][2] - face[0][0]) * (face[0][3] - face[0][1]))
        tall = y1 - y0
        return (
            vector,
            _colours(large, (x0, y0 - 0.5 * tall, x1, y0)),
            _colours(large, (x0, y1 + 0.2 * tall, x1, y1 + 2 * tall)),
        )


def _colours(picture: Picture, box: tuple[float, float, float, float]) -> Vector:
    """Histogram of hue and saturation within a box, sum 1."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = np.clip(box, 0, 1) * [width, height, width, height]
    part = np.ascontiguousarray(picture[int(y0) : max(int(y1), int(y0) + 1), int(x0) : max(int(x1), int(x0) + 1)])
    if part.size == 0:
        return np.zeros(64, np.float32)
    hsv = cv2.cvtColor(part, cv2.COLOR_RGB2HSV)
    found = cv2.calcHist([hsv], [0, 1], None, [8, 8], [0, 180, 0, 256])
    return np.asarray(found, np.float32).ravel() / max(1.0, float(found.sum()))


def _same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    return float(np.minimum(first, second).sum()) >= _ALIKE


@dataclass(frozen=True)
class SmallKit:
    """The parts of the chain `small`; `mediapipe` is the wheel 0.10.21 or a folder with its .tflite files."""

    mediapipe: Path

    @property
    def name(self) -> str:
        """As `Kit.name`."""
        return "small"

    @property
    def mark(self) -> str:
        """As `Kit.mark`."""
        return digest(_FACE_LIMIT, _BODY_SCORE, _FACE_SCORE, _LEAST_SIDE, _ALIKE)

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """As `Kit.cards`."""
        return (
            ModelCard("dlib-hog-face", "dlib-bin", "faces"),
            ModelCard("opencv-hog-people", "OpenCV 4", "people"),
            ModelCard("dlib-face-recognition-resnet", "face-recognition-models 0.3.0", "identity"),
            ModelCard("mediapipe-selfie", "mediapipe 0.10.21", "masks"),
            ModelCard("mediapipe-blazepose-full", "mediapipe 0.10.21", "poses"),
        )

    @property
    def gpu(self) -> bool:
        """As `Kit.gpu`."""
        return False

    def check(self) -> None:
        """As `Kit.check`."""
        if find_spec("dlib") is None:
            raise MissingDependencyError(f"The chain small needs dlib. Run: {_INSTALL}")
        weights_of("dlib_face_recognition_resnet_model_v1.dat")
        if not hasattr(cv2, "HOGDescriptor"):
            raise no_people_detector()
        if find_spec("ai_edge_litert") is None:
            raise MissingDependencyError(f"The chain small needs ai-edge-litert. Run: {_INSTALL}")
        if not self.mediapipe.exists():
            raise InputError(f"small.mediapipe {self.mediapipe} does not exist; see docs/POSES.md.")

    def load(self) -> Parts:
        """As `Kit.load`."""
        detector = FacesAndBodies()
        vectors = FaceVectors(detector)
        judge = FacesAndColours(detector, vectors)
        masks, poses = SelfieMasks(self.mediapipe), BlazePose(self.mediapipe)
        return Parts(detector, masks, poses, vectors, NeutralCaptions(), judge)
