"""Checkpoints written while the training goes on: a thread copies, hashes and writes what a step left.

The next step's forward and backward pass change nothing that a checkpoint holds; only its update waits until the copies
are made. Then the thread hashes and writes piece by piece, with pauses that leave the processor to the training, unless
the run waits for it. Under FSDP2 every process copies and writes its own shards, and no tensor is gathered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from training.data.work import thread_count
from training.distributed import World, own_rows
from training.state import CheckpointStore, Progress, ShareError, Writers, together
from training.stopping import TrainingStopped
from training.tensor_files import Rows

_Files = Mapping[str, Mapping[str, Tensor]]
_Copies = dict[str, dict[str, Tensor | Rows]]
THREAD = "checkpoint"
"""Name of the thread that saves."""
_SHARE = 0.025  # of the cores that this process has
_PIECE, _ALIGNED = 2**28, 64  # bytes


class Pace:
    """Pauses in a thread's work, which so takes a fortieth of the process's cores, until another thread awaits its end.

    Work is measured by the clock: where others keep it waiting for a core, pauses are longer too.
    """

    def __init__(self) -> None:
        self._rest = max(0.0, 1 / (_SHARE * thread_count()) - 1)  # for each second of work
        self._awaited = threading.Event()

    def hurry(self) -> None:
        """End a pause and make no further one, from another thread."""
        self._awaited.set()

    def pause(self, worked: float) -> None:
        """Pause for as long as so many seconds of work demand."""
        self._awaited.wait(worked * self._rest)


class Saver:
    """The checkpoints of a run, at most one of them being written. All processes must make the same calls.

    As a context it completes the last one at the end, also after an error in this process; a KeyboardInterrupt leaves
    it unfinished.
    """

    def __init__(self, store: CheckpointStore, world: World) -> None:
        self._store, self._world = store, world
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._pace = Pace()
        self._buffers = Buffers()
        self._error: Exception | None = None
        self._writers: Writers | None = None  # None: this process writes nothing
        if world.sharded:
            self._writers = Writers(world.rank, world.size, partial(world.gather, group=world.saving))
        elif world.first:
            self._writers = Writers()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `finish` then raises the reason."""
        return self._error is not None

    def start(self, progress: Progress, tensors: _Files) -> None:
        """Begin to write a checkpoint, after the one before is complete.

        Args:
            tensors: parameters, averages and optimizer's state, which must stay as they are until `wait_for_copies`;
                of a sharded network the shards.

        Raises: as `finish`, for the one before.
        """
        self.finish()
        if self._writers is None:
            return
        stream: Any = None
        if self._world.device.type == "cuda":
            stream = torch.cuda.Stream(self._world.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(self._world.device))
        still = replace(progress, learning_rates=dict(progress.learning_rates))
        self._copied.clear()
        self._pace = Pace()
        given = (still, tensors, stream, replace(self._writers, pause=self._pace.pause))
        self._thread = threading.Thread(target=self._write, name=THREAD, args=given, daemon=True)
        self._thread.start()

    def wait_for_copies(self) -> None:
        """Wait until the tensors of the last `start` may change."""
        if self._thread is not None:
            self._copied.wait()

    def finish(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            Exception: why this process could not write, such as OSError.
            TrainingStopped: another one could not.
        """
        self._join()
        if self._world.any(self.failed)[0]:
            error, self._error = self._error, None
            if error is not None and not isinstance(error, ShareError):
                raise error
            raise TrainingStopped("Another process could not write a checkpoint; the previous one is complete.")

    def _join(self) -> None:
        if self._thread is not None:
            self._pace.hurry()
            self._thread.join()
            self._thread = None

    def _write(self, progress: Progress, tensors: _Files, stream: Any, writers: Writers) -> None:
        copies: _Copies = {}

        def copy() -> None:
            try:
                copies.update(copy_own(tensors, writers, stream, self._buffers))
            finally:
                self._copied.set()

        try:
            together(writers, copy)
            self._store.save(progress, copies, writers)
        except Exception as error:  # whatever it is, `finish` raises it: left in the thread it would end nothing
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        alone = self._writers is None or self._writers.size == 1
        if kind is None or (alone and not issubclass(kind, KeyboardInterrupt)):
            self._join()


class Buffers:
    """Memory of the copies, kept between checkpoints: it is slower to get than to fill.

    Memory that a card can write to by itself torch gets in powers of two bytes, for each tensor up to twice its own. So
    tensors share pieces of such sizes: each lies in the first that has room.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._rests: dict[bool, list[Tensor]] = {True: [], False: []}  # of the pieces, for a card or not
        self._held = {True: 0, False: 0}

    def like(self, tensor: Tensor, key: str) -> Tensor:
        """A tensor of the same shape and dtype on the CPU; the same one for the same key."""
        found = self._tensors.get(key)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            room = self._room(tensor.numel() * tensor.element_size(), pinned=tensor.device.type == "cuda")
            found = self._tensors[key] = room.view(tensor.dtype).view(tensor.shape)
        return found

    def _room(self, size: int, *, pinned: bool) -> Tensor:
        needed, rests = -(-size // _ALIGNED) * _ALIGNED, self._rests[pinned]
        index = next((index for index, rest in enumerate(rests) if len(rest) >= needed), len(rests))
        if index == len(rests):
            least = max(needed, min(_PIECE, self._held[pinned]))  # of small checkpoints smaller pieces
            rests.append(torch.empty(1 << (least - 1).bit_length(), dtype=torch.uint8, pin_memory=pinned))
            self._held[pinned] += len(rests[index])
        found, rests[index] = rests[index][:size], rests[index][needed:]
        return found


def copy_own(tensors: _Files, writers: Writers, stream: Any, buffers: Buffers) -> _Copies:
    """What this process writes, on the CPU: its own rows of shards, and the first process all that is whole.

    Args:
        stream: of a card, on which the copies are made; None on a CPU. buffers: filled and used again by later calls.
    """
    found: _Copies = {}
    with torch.no_grad(), torch.cuda.stream(stream):
        for file, named in tensors.items():
            copies = found.setdefault(file, {})
            for name, tensor in named.items():
                key = f"{file}/{name}"
                if not isinstance(tensor, DTensor):
                    if writers.rank == 0:
                        copies[name] = _copy(tensor, key, buffers)
                elif (rows := own_rows(tensor)) is not None:
                    copies[name] = Rows(_copy(tensor.to_local(), key, buffers), rows.start, tensor.shape[0])
    if stream is not None:
        stream.synchronize()
    return found


def _copy(tensor: Tensor, key: str, buffers: Buffers) -> Tensor:
    """A copy in memory that the card can write to by itself, where the tensor is on one."""
    return buffers.like(tensor, key).copy_(tensor, non_blocking=tensor.device.type == "cuda")
