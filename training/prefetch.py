"""Batches prepared ahead of time by worker processes, in the order of the steps."""

import atexit
import ctypes
import gc
import io
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from contextanyone_core.errors import ContextAnyoneError
from training.parts.base import Part
from training.randomness import seed_globals

StartMethod = Literal["fork", "forkserver", "spawn"]
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PRELOADED = ["cv2", "torch"]  # by the server that forks the workers: imported once for all of them


class _Batches(Dataset[Any]):
    """The batch of every step, by index. A pickle of it has no networks."""

    def __init__(self, part: Part, seed: int) -> None:
        self._part = part
        self._seed = seed

    def __getitem__(self, step: int) -> Any:
        seed_globals(self._seed, step, "batch")
        try:
            return self._part.batch(step)
        except ContextAnyoneError as error:  # passed on as a value: the loader would wrap it in a traceback
            return error

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        _WithoutNetworks(buffer, pickle.HIGHEST_PROTOCOL).dump(self._part)
        return _restored, (buffer.getvalue(), self._seed)


def _restored(part: bytes, seed: int) -> _Batches:
    """What multiprocessing does with the arguments of a new process; nothing of it comes from a file."""
    return _Batches(ForkingPickler.loads(part), seed)


class _Absent:
    """Stands for a network, or a tensor on a GPU, which `Part.batch` does not use."""


class _WithoutNetworks(ForkingPickler):
    """Leaves out networks and what is on a GPU; other tensors travel by shared memory."""

    def reducer_override(self, found: Any) -> Any:
        """What replaces an object."""
        if isinstance(found, nn.Module) or (isinstance(found, torch.Tensor) and found.device.type != "cpu"):
            return _Absent, ()
        return NotImplemented


def start_method(processes: int, platform: str = sys.platform) -> StartMethod:
    """How workers are started where so many processes train together.

    A fork is made where this process trains alone. Among several it could copy a lock or a connection of theirs (NCCL,
    InfiniBand) in the middle of its use: a forkserver's workers are forks of a new process. macOS's own libraries do
    not survive a fork, and Windows has none: there a worker is a new process. New ones get the part by pickle, without
    its networks.
    """
    if platform != "linux":
        return "spawn"
    return "fork" if processes == 1 else "forkserver"


def batches(
    part: Part,
    seed: int,
    steps: range,
    *,
    workers: int,
    pin_memory: bool,
    method: StartMethod = "fork",
) -> Iterator[Any]:
    """Return an iterator over `part.batch(step)` for the steps, in order, the same for any number of workers.

    Workers have one thread each. OpenCV's own threads are switched off, here too: they do not survive a fork.
    SIGTERM and SIGINT, which schedulers send to every process of a job, do not end a worker while this process runs: it
    may have a checkpoint to save, and ends the workers itself.

    Args:
        method: by `start_method`.
    """
    cv2.setNumThreads(0)
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(_PRELOADED)
    ending = context.RawValue(ctypes.c_bool, False)  # set when this process ends, before Python ends its workers
    atexit.register(setattr, ending, "value", True)
    loader = DataLoader(
        _Batches(part, seed),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, ending) if workers else None,
        multiprocessing_context=context if workers else None,
    )
    if not workers:
        return _or_raise(iter(loader))
    with _job_signals_wait(), no_garbage_in_forks():  # what is started inherits both, the first until it is ready
        return _or_raise(iter(loader))


@contextmanager
def no_garbage_in_forks() -> Iterator[None]:
    """Forks made within never collect what this process has now: a video frame waits there for threads it has not."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _job_signals_wait() -> Iterator[None]:
    """Hold back the signals of a job; Windows cannot."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        yield
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


def _start_worker(ending: Any, _: int) -> None:
    parent = os.getppid()  # the trainer, or the server, which ends with it

    def outlive(*_: Any) -> None:
        if ending.value or os.getppid() != parent:
            os._exit(0)

    for number in _JOB_SIGNALS:
        signal.signal(number, outlive)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
