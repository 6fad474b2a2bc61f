"""Keypoints in JSON: OpenPose's frames, ComfyUI's POSE_KEYPOINT, and COCO's annotations and results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..media.read_video import natural_key
from .frame_ids import frame_order
from .layouts import from_coco, from_flat_body, joint_name, padded_face
from .sequence import BODY, HAND, WHOLE, Points, PoseSequence

MAX_BYTES = 512_000_000
_SHARES_UP_TO = 2.0  # no clip in pixels stays within 2 pixels of a corner; a point off the canvas may slightly exceed 1

_SCORES_UP_TO, _PERCENT = 2.0, 100.0  # scores of some detectors slightly exceed 1


@dataclass(frozen=True)
class PoseFrames:
    """The content of a file of keypoints: the people in each frame, each (130, 3).

    size: (height, width) of the canvas, fps: frames per second; None if the file does not state them.
    shares: whether x and y are fractions of the canvas instead of pixels.
    """

    people: list[list[Points]]
    size: tuple[int, int] | None
    fps: float | None
    shares: bool = False

    def in_pixels(self, size: tuple[int, int]) -> list[list[Points]]:
        """The people in pixels of a canvas of `size` = (height, width)."""
        scale = (size[1], size[0], 1) if self.shares else (1, 1, 1)
        return [[person * scale for person in frame] for frame in self.people]


def parse_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises: InputError if the file is missing, empty, too large or damaged.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path} is empty; a file of keypoints is needed.")
        if size > MAX_BYTES:
            raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} of keypoints are read.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON, or damaged ({type(error).__name__}); keypoints are needed.") from error


def frames_of(content: Any, name: str) -> PoseFrames:
    """The frames of parsed JSON or of a POSE_KEYPOINT: a list of frames, one frame, or COCO's annotations or results.

    Args:
        content: parsed JSON.
        name: name of the file, for messages.

    Raises: InputError for another structure, another number of points, or values that are not numbers.
    """
    try:
        if isinstance(content, Mapping) and "annotations" in content and "images" in content:
            return _coco_annotations(content)
        if isinstance(content, Mapping) and "people" in content:
            content = [content]
        if isinstance(content, Sequence) and content and all(isinstance(item, Mapping) for item in content):
            if all("people" in item for item in content):
                return _openpose(content)
            if all("keypoints" in item and "image_id" in item for item in content):
                return _coco_results(content)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{name} has an entry that does not fit its format ({type(error).__name__}: {error})."
        ) from error
    raise InputError(
        f"{name} holds no keypoints of a known form: OpenPose's frames with `people`, a list of them (POSE_KEYPOINT), "
        "or COCO's `annotations` or results are needed."
    )


def to_json(poses: PoseSequence) -> list[dict[str, Any]]:
    """A sequence as POSE_KEYPOINT: a list of OpenPose's frames in pixels, with the canvas and `fps`."""
    frames = []
    for index in range(poses.num_frames):
        person: dict[str, Any] = {"person_id": [-1], "pose_keypoints_2d": _flat(poses.body[index])}
        if poses.hands is not None:
            left, right = poses.hands[index]
            person |= {"hand_left_keypoints_2d": _flat(left), "hand_right_keypoints_2d": _flat(right)}
        if poses.face is not None:
            person["face_keypoints_2d"] = _flat(poses.face[index])
        frames.append(
            {
                "version": 1.3,
                "canvas_width": poses.width,
                "canvas_height": poses.height,
                "fps": poses.fps,
                "people": [person] if (poses.body[index, :, 2] > 0).any() else [],
            }
        )
    return frames


def _flat(points: Points) -> list[float]:
    return [round(float(number), 4) for number in points.reshape(-1)]


def _openpose(frames: Sequence[Mapping[str, Any]]) -> PoseFrames:
    people = [
        [_person(person, f"frame {index}") for person in frame["people"] or []] for index, frame in enumerate(frames)
    ]
    sizes = {_size(frame.get("canvas_height"), frame.get("canvas_width")) for frame in frames}
    rates = {frame.get("fps") for frame in frames}
    if len(sizes) > 1:
        raise InputError("its frames have canvases of different sizes; one size is needed.")
    if len(rates) > 1:
        raise InputError("its frames state different rates; one is needed.")
    (size,), (rate,) = sizes, rates
    return PoseFrames(_scored(people), size, None if rate is None else float(rate), _are_shares(people))


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    if height is None or width is None:
        return None
    if not (float(height).is_integer() and float(width).is_integer() and height > 0 and width > 0):
        raise InputError(f"a canvas of {width} x {height} pixels is stated; whole numbers above 0 are needed.")
    return int(height), int(width)


def _person(person: Mapping[str, Any], where: str) -> Points:
    whole = np.zeros((WHOLE, 3))
    if body := person.get("pose_keypoints_2d"):
        whole[:BODY] = from_flat_body(_triples(body, "pose_keypoints_2d", where))
    for place, side in enumerate(("left", "right")):
        if hand := person.get(f"hand_{side}_keypoints_2d"):
            points = _triples(hand, f"hand_{side}_keypoints_2d", where)
            if len(points) != HAND:
                raise InputError(f"hand_{side}_keypoints_2d has {len(points)} points; {HAND} are needed.")
            whole[BODY + place * HAND : BODY + (place + 1) * HAND] = points
    if face := person.get("face_keypoints_2d"):
        whole[BODY + 2 * HAND :] = padded_face(_triples(face, "face_keypoints_2d", where))
    whole[(whole[:, :2] == 0).all(axis=1)] = 0  # controlnet_aux writes a missing joint as 0, 0, possibly with a score
    return whole


def _triples(numbers: Sequence[Any], what: str, where: str) -> Points:
    """Points (K, 3) of a flat list; without an x or y (null) they are missing. `what` and `where` are for messages."""
    if any(isinstance(number, str | bool) for number in numbers):
        raise InputError(f"{what} holds something that is no number.")
    points = np.asarray(numbers, dtype=np.float64)
    if points.ndim != 1 or len(points) % 3:
        raise InputError(f"{what} must be a flat list of x, y, score; it has {points.size} numbers.")
    points = points.reshape(-1, 3)
    points[[None in numbers[start : start + 2] for start in range(0, len(numbers), 3)]] = 0
    if (odd := np.flatnonzero(~np.isfinite(points).all(axis=1))).size:
        joint = joint_name(int(odd[0]), len(points))
        raise InputError(f"{what} has numbers that are not finite ({where}, {joint}); a missing joint is 0, 0, 0.")
    return points


def _scored(people: list[list[Points]]) -> list[list[Points]]:
    """The people with scores from 0 to 1; a clip with a score above 2 has them in percent.

    Raises: InputError for a score above 100.
    """
    largest = max((float(person[:, 2].max()) for frame in people for person in frame), default=0.0)
    if largest <= _SCORES_UP_TO:
        return people
    if largest > _PERCENT:
        raise InputError(f"its largest score is {largest:g}; scores from 0 to 1, or from 0 to 100, are needed.")
    return [[person / (1, 1, _PERCENT) for person in frame] for frame in people]


def _are_shares(people: list[list[Points]]) -> bool:
    """Whether coordinates are fractions of the canvas, decided by the largest one of the clip."""
    largest = [float(np.abs(person[:, :2]).max()) for frame in people for person in frame]
    return max(largest, default=np.inf) <= _SHARES_UP_TO


def _coco_annotations(content: Mapping[str, Any]) -> PoseFrames:
    """COCO's keypoint annotations: one frame per image in natural order of names; visibility 0 is missing."""
    images = sorted(content["images"], key=lambda image: (natural_key(str(image.get("file_name", ""))), image["id"]))
    sizes = {_size(image["height"], image["width"]) for image in images}
    if len(sizes) != 1:
        raise InputError("its images have different sizes, or there are none; frames of one clip are needed.")
    people: dict[Any, list[Points]] = {image["id"]: [] for image in images}
    for entry in content["annotations"]:
        points = _triples(entry["keypoints"], "keypoints", f"image {entry['image_id']}")
        points[:, 2] = points[:, 2] > 0
        people[entry["image_id"]].append(_coco_person(points))
    return PoseFrames(list(people.values()), sizes.pop(), None)


def _coco_results(content: Sequence[Mapping[str, Any]]) -> PoseFrames:
    """COCO's keypoint results: one frame per `image_id`, empty ones as `frame_order`; the canvas is not stated."""
    order = frame_order(entry["image_id"] for entry in content)
    people: dict[Any, list[Points]] = {number: [] for number in order}
    for entry in content:
        number = entry["image_id"]
        people[number].append(_coco_person(_triples(entry["keypoints"], "keypoints", f"image {number}")))
    return PoseFrames(_scored([[] if number is None else people[number] for number in order]), None, None)


def _coco_person(points: Points) -> Points:
    if len(points) != 17:
        raise InputError(f"keypoints has {len(points)} points; COCO's 17 are needed.")
    whole = np.zeros((WHOLE, 3))
    whole[:BODY] = from_coco(points)
    return whole
