"""Pictures on disk, RGB in memory."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import whole_file


def read_picture(path: Path) -> NDArray[np.uint8]:
    """An RGB picture (H, W, 3). Raises: OSError."""
    stored = _decoded(path, cv2.IMREAD_COLOR)
    if stored is None:
        raise OSError(f"{path} cannot be read.")
    return np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)


def read_mask(path: Path) -> NDArray[np.uint8] | None:
    """A grey picture (H, W); None where there is none."""
    return _decoded(path, cv2.IMREAD_GRAYSCALE) if path.is_file() else None


def _decoded(path: Path, flag: int) -> NDArray[np.uint8] | None:
    """By the file's bytes: OpenCV on Windows finds no file with a letter of another code page."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    stored = cv2.imdecode(content, flag) if content.size else None
    return None if stored is None else np.asarray(stored, np.uint8)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB (H, W, 3) or grey (H, W) picture, whole or not at all. Raises: OSError."""
    with whole_file(path) as beside:
        encode_picture(beside, picture)


def encode_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB or grey picture at once; for files of a folder that gets its name later. Raises: OSError."""
    stored = picture if picture.ndim == 2 else picture[..., ::-1]
    done, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(stored))
    if not done:
        raise OSError(f"{path} could not be written.")
    path.write_bytes(encoded.tobytes())  # whose error says why, such as a full disk; OpenCV's does not
