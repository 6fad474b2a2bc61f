"""Batches prepared ahead of time by worker processes, in the order of the steps."""

import atexit
import mmap
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from contextanyone_core.errors import ContextAnyoneError
from training.parts.base import Part
from training.randomness import seed_globals

_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Batches(Dataset[Any]):
    """The batch of every step, by index."""

    def __init__(self, part: Part, seed: int) -> None:
        self._part = part
        self._seed = seed

    def __getitem__(self, step: int) -> Any:
        seed_globals(self._seed, step, "batch")
        try:
            return self._part.batch(step)
        except ContextAnyoneError as error:  # passed on as a value: the loader would wrap it in a traceback
            return error


def batches(part: Part, seed: int, steps: range, *, workers: int, pin_memory: bool) -> Iterator[Any]:
    """Return an iterator over `part.batch(step)` for the steps, in order, the same for any number of workers.

    Workers are forks with one thread each. OpenCV's own threads are switched off, here too: they do not survive a fork.
    SIGTERM and SIGINT, which schedulers send to every process of a job, do not end a worker while this process runs: it
    may have a checkpoint to save, and ends the workers itself.
    """
    cv2.setNumThreads(0)
    ending = mmap.mmap(-1, 1)  # shared with the forks; set when this process ends, before Python ends its workers
    atexit.register(ending.write_byte, 1)
    loader = DataLoader(
        _Batches(part, seed),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, ending, os.getpid()) if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    if not workers:
        return _or_raise(iter(loader))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)  # the forks inherit it, until they are ready
    try:
        return _or_raise(iter(loader))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _or_raise(found: Iterator[Any]) -> Iterator[Any]:
    for batch in found:
        if isinstance(batch, ContextAnyoneError):
            raise batch
        yield batch


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(ending: mmap.mmap, trainer: int, _: int) -> None:
    def outlive(*_: Any) -> None:
        if ending[0] or os.getppid() != trainer:
            os._exit(0)

    for number in _JOB_SIGNALS:
        signal.signal(number, outlive)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
