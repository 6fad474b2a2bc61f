"""Files of the trainer: tensors that are on disk whole or not at all, pictures, and what a file contains."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from contextanyone_core.atomic_file import whole_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; several processes may write the same one.

    Raises:
        OSError: the disk is full or not writable; nothing appears under the name, nothing stays beside it.
    """
    with whole_file(path) as beside:
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, beside, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from None


def read_grey(path: Path) -> NDArray[np.uint8]:
    """A picture as grey (H, W); by its bytes, as OpenCV on Windows finds no file with a letter of another code page.

    Raises:
        OSError: it is missing or no picture.
    """
    content = np.frombuffer(path.read_bytes(), np.uint8)
    found = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if content.size else None
    if found is None:
        raise OSError(f"{path} cannot be read as a picture.")
    return np.asarray(found, np.uint8)


def write_png(path: Path, picture: NDArray[np.uint8], options: Sequence[int] = ()) -> None:
    """Write a grey (H, W) or RGB (H, W, 3) picture.

    Args:
        options: OpenCV's for PNG, names and values in turn.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    shown = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, content = cv2.imencode(".png", np.asarray(shown), options)
    if not done:
        raise ValueError(f"{path}: the picture cannot be encoded.")
    path.write_bytes(content.tobytes())


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
