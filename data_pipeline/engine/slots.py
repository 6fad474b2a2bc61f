"""Which of its engine's workers a process is: a number that no other living one has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

_VARIABLE = "CONTEXTANYONE_WORKER"
_held: list[IO[str]] = []


def take_slot(folder: Path, count: int) -> int:
    """Take the first free number below `count`, 0 where none is; it is free again when this process ends, however.

    Args:
        folder: of the workers that share the numbers, one file for each.
    """
    try:
        import fcntl
    except ImportError:  # Windows: all workers have one number
        return 0
    for number in range(count):
        file = (folder / str(number)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _held.append(file)
        os.environ[_VARIABLE] = str(number)
        return number
    return 0


def own_card(device: str) -> str:
    """The device of this worker: of several GPUs `cuda` is one for each worker in turn; any other name stays."""
    if device != "cuda":
        return device
    import torch  # late: only the chains that use a GPU need it

    count = torch.cuda.device_count()
    return f"cuda:{int(os.environ.get(_VARIABLE, '0')) % count}" if count > 1 else device
