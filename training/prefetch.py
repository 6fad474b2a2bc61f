"""Batches prepared ahead of time by worker processes, in the order of the steps."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from training.parts.base import Part
from training.randomness import seed_globals


class _Batches(Dataset[Any]):
    """The batch of every step, by index."""

    def __init__(self, part: Part, seed: int) -> None:
        self._part = part
        self._seed = seed

    def __getitem__(self, step: int) -> Any:
        seed_globals(self._seed, step, "batch")
        return self._part.batch(step)


def batches(part: Part, seed: int, steps: range, *, workers: int, pin_memory: bool) -> Iterator[Any]:
    """Return an iterator over `part.batch(step)` for the steps, in order, the same for any number of workers.

    Workers are forks with one thread each. OpenCV's own threads are switched off, here too: they do not survive a fork.
    """
    cv2.setNumThreads(0)
    loader = DataLoader(
        _Batches(part, seed),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, inside dicts, lists and tuples, to the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    # A session of its own: a signal to the group of the trainer reaches the trainer alone, which then stops its
    # workers. What the trainer does on SIGTERM must not be inherited: Python ends forgotten workers with it.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
