"""Features on disk, by what they were computed from: a file's hash, the model's revision, which view."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import whole_file

Features = NDArray[np.float32]

_VERSION = 2  # of what is computed; another number leaves all old entries unused


class FeatureCache:
    """A folder of arrays. What is there is never computed again, so that an interrupted run goes on where it was.

    Args:
        folder: made if needed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.computed = 0

    def get(self, key: tuple[str, ...], compute: Callable[[], Features]) -> Features:
        """The array of a key, read or else computed and written. A damaged file is computed again."""
        name = hashlib.sha256(json.dumps([_VERSION, *key]).encode()).hexdigest()
        path = self._folder / f"{name}.npy"
        if path.is_file():
            try:
                return np.asarray(np.load(path, allow_pickle=False), np.float32)
            except (ValueError, EOFError):
                path.unlink()
        found = compute()
        self.computed += 1
        with whole_file(path) as beside, beside.open("wb") as file:
            np.save(file, found, allow_pickle=False)
        return found
