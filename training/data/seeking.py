"""Frames of a video file from any frame on, the same ones as by decoding from the first, without decoding up to there.

A frame's number is its place among the presentation times of the file's packets. The decoder starts at a key frame that
is shown before the wanted one, and what it gives before that key frame (the leading frames of an open group of
pictures, which refer to pictures that were skipped) is thrown away. Where a file's times do not name its frames one by
one, or its seeks do not arrive, decoding starts at the first frame.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NEAR = 32  # frames: up to here decoding from the first costs no more than finding out where to start
_BACK = (0, 300, 3000)  # frames before the wanted one that are tried as starting points
_KEPT = 16  # files whose times are kept

Times = NDArray[np.int64]
Opener = Callable[[], AbstractContextManager[tuple[Any, Any]]]
_times: OrderedDict[tuple[str, int, int], Times | None] = OrderedDict()
_lock = threading.Lock()


def frames_from(opened: Opener, path: Path, start: int) -> Iterator[Any]:
    """PyAV's frames number `start`, `start` + 1, ... of a video file, in the order in which they are shown.

    Args:
        opened: opens `path` and gives its PyAV container and video stream; called once or a few times.
        path: names the file.
        start: from 0; nothing comes where the file has fewer frames.
    """
    times = presentation_times(opened, path) if start > _NEAR else None
    if times is not None and start < len(times):
        for back in _BACK:
            if back and start <= back:
                break
            with opened() as (container, stream):
                frames = _after_seek(container, stream, times, start, max(0, start - back))
                first = next(frames, None)
                if first is not None:
                    yield first
                    yield from frames
                    return
    with opened() as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number >= start:
                yield frame


def _after_seek(container: Any, stream: Any, times: Times, start: int, aim: int) -> Iterator[Any]:
    """The frames from `start` on, found by seeking to `aim`; none where that leads anywhere else."""
    container.seek(int(times[aim]), stream=stream, backward=True)
    keyed, expected = False, start
    for frame in container.decode(stream):
        number = -1 if frame.pts is None else int(np.searchsorted(times, frame.pts))
        if number < 0 or number == len(times) or times[number] != frame.pts:
            return
        keyed = keyed or (frame.key_frame and number <= start)
        if number < start or (not keyed and number <= start):
            continue
        if not keyed or (expected == start and number > start) or (number == start and frame.is_corrupt):
            return
        expected = number + 1
        yield frame


def presentation_times(opened: Opener, path: Path) -> Times | None:
    """The times of a file's frames in its own units, increasing; None where two are equal, one is missing, or they
    start anew (files joined end to end)."""
    state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    with _lock:
        if key in _times:
            _times.move_to_end(key)
            return _times[key]
    with opened() as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        both = [(packet.pts, packet.dts) for packet in packets]
    found, decoding = [pts for pts, _ in both], [dts for _, dts in both if dts is not None]
    times = None
    if found and None not in found and decoding == sorted(decoding):
        times = np.sort(np.asarray(found, np.int64))
        if bool((np.diff(times) <= 0).any()):
            times = None
    with _lock:
        _times[key] = times
        while len(_times) > _KEPT:
            _times.popitem(last=False)
    return times
