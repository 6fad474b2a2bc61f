"""Pose files: keypoints as safetensors, as in a manifest's column `pose`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import InputError
from .layouts import LAYOUTS, to_whole
from .sequence import PoseSequence, sequence_of


def read_pose_file(path: Path) -> PoseSequence:
    """Read `keypoints` (T, K, 3): x and y in pixels, score. The metadata has `layout`, `width`, `height`, `fps`.

    The layout is one of `LAYOUTS` and never guessed. With body18, the tensors `hands` (T, 2, 21, 3) and `face`
    (T, 70, 3) are optional.

    Raises: InputError for a file that cannot be read, lacks one of these, or is inconsistent.
    """
    metadata, tensors = _contents(path)
    missing = [key for key in ("layout", "width", "height", "fps") if key not in metadata]
    if "keypoints" not in tensors or missing:
        what = "the tensor keypoints" if "keypoints" not in tensors else f"{', '.join(missing)} in its metadata"
        raise InputError(
            f"{path} lacks {what}; a pose file states layout ({', '.join(LAYOUTS)}), width, height and fps."
        )
    try:
        size, fps = (int(metadata["height"]), int(metadata["width"])), float(metadata["fps"])
    except ValueError as error:
        raise InputError(f"{path} states a width, height or fps that is no number ({error}).") from error
    try:
        poses = sequence_of(to_whole(tensors["keypoints"].astype(np.float64), metadata["layout"]), size, fps)
        for name in ("hands", "face"):
            if name in tensors and metadata["layout"] == "body18":
                parts = {"hands": poses.hands, "face": poses.face} | {name: tensors[name].astype(np.float64)}
                poses = PoseSequence(poses.body, poses.width, poses.height, poses.fps, parts["hands"], parts["face"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return poses


def states_keypoints(path: Path) -> bool:
    """Whether a safetensors file holds keypoints. Raises: InputError if it cannot be read."""
    return "keypoints" in _contents(path)[1]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises: InputError if it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}).") from error


def pose_file_bytes(poses: PoseSequence) -> bytes:
    """Serialise a sequence as a pose file, float32 in the layout body18; equal poses give equal bytes."""
    tensors = {"keypoints": poses.body, "hands": poses.hands, "face": poses.face}
    metadata = {"layout": "body18", "width": str(poses.width), "height": str(poses.height), "fps": f"{poses.fps:.12g}"}
    content: bytes = save(
        {name: tensor.astype(np.float32) for name, tensor in tensors.items() if tensor is not None}, metadata
    )
    return _with_sorted_metadata(content)


def _with_sorted_metadata(content: bytes) -> bytes:
    """safetensors writes the metadata in a random order; sorted by key, the header has the same length."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length)
    return content[:8] + text + content[8 + length :]


def _contents(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in ("keypoints", "hands", "face") if name in file.keys()]  # noqa: SIM118
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}).") from error
