"""Video files as a player shows them, through PyAV, which is imported late.

The default stream, its frames upright and mirrored as the file says, with square pixels, transparency over white. What
cannot be shown faithfully is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.late_import import missing
from contextanyone_core.media.image_io import over_white
from contextanyone_core.media.video_io import FPS
from training.data.seeking import frames_from, presentation_times

VIDEO_ENDINGS = frozenset(
    {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv"}
)
"""Endings, in small letters, of what is taken for a video in a folder."""

_MAX_STRETCH = 4  # of a pixel's sides; beyond it the number is a mistake
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions, by their numbers in ITU-T H.273
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders drop the alpha of a WebM


class MediaError(InputError):
    """A file is there and cannot be used: damaged, of another format, or without the frames it should have."""


def video_times(path: Path) -> list[float]:
    """Seconds of every frame in the order of display, without decoding; by number where the file gives no times.

    Where the times start anew (files joined end to end) they go on after the last one.

    Raises:
        MediaError: it cannot be read, or holds no frame.
        MissingDependencyError: PyAV is not installed.
    """
    with open_stream(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if not packets:
            raise MediaError(f"{path} holds no frame.")
        if any(packet.pts is None for packet in packets):
            rate = float(stream.average_rate or FPS)
            return [index / rate for index in range(len(packets))]
        return _joined(_clocks(packets))


def video_frames(path: Path, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Every frame from number `start` on, RGB (H, W, 3), as it is to be shown.

    Raises:
        MediaError: it cannot be decoded, or not be shown faithfully: HDR, pixels far from square, or a display matrix
            that is none of the eight turns and mirrorings.
        MissingDependencyError: PyAV is not installed.
    """
    turn = None
    for frame, aspect in _decoded(path, start):
        if frame.color_trc in _HDR:
            raise MediaError(f"{path} is HDR ({_HDR[frame.color_trc]}); convert it to SDR, BT.709, first.")
        turn = _display_matrix(frame) or turn
        yield _turned(_square(_pixels(frame), aspect, path), turn, path)


def video_sizes(path: Path, start: int) -> Iterator[tuple[int, int]]:
    """(height, width) of every frame from number `start` on, as the file has it; nothing is converted.

    Raises:
        MediaError: a frame is missing or cannot be decoded.
        MissingDependencyError: PyAV is not installed.
    """
    times = presentation_times(partial(open_stream, path), path)
    for number, (frame, _) in enumerate(_decoded(path, start), start):
        if times is not None and (number == len(times) or frame.pts != times[number]):
            raise MediaError(f"{path}: frame {number} does not decode.")
        yield frame.height, frame.width


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container, and the video stream that a player shows.

    Raises:
        MediaError: it cannot be read, or has no video; also for what PyAV raises within the context.
        MissingDependencyError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise missing("Reading video files", "av") from error
    if not path.is_file():
        raise MediaError(f"{path} is not a regular file.")
    try:
        with av.open(str(path)) as container:
            yield container, _default_stream(container, path)
    except (av.error.FFmpegError, OSError, EOFError, ValueError) as error:
        raise MediaError(f"{path} cannot be decoded ({error}).") from None


def _default_stream(container: Any, path: Path) -> Any:
    """The first stream that is marked as the default one, else the first; never cover art."""
    from av.stream import Disposition

    streams = [x for x in container.streams.video if not x.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{path} has no video in it.")
    stream = next((x for x in streams if x.disposition & Disposition.default), streams[0])
    stream.thread_type = "AUTO"
    return stream


def _clocks(packets: list[Any]) -> list[list[float]]:
    """The times of the packets, a list for each stretch in which the order of decoding never goes back."""
    clocks: list[list[float]] = []
    before = None
    for packet in packets:
        if not clocks or (before is not None and packet.dts is not None and packet.dts < before):
            clocks.append([])
        before = before if packet.dts is None else packet.dts
        clocks[-1].append(float(packet.pts * packet.time_base))
    return [sorted(clock) for clock in clocks]


def _joined(clocks: list[list[float]]) -> list[float]:
    """One list of times: each stretch begins a usual step after the last frame of the one before."""
    times = list(clocks[0])
    steps = [later - earlier for clock in clocks for earlier, later in pairwise(clock)]
    step = median(steps) if steps else 1 / FPS
    for clock in clocks[1:]:
        shift = times[-1] + step - clock[0]
        times += [time + shift for time in clock]
    return times


def _decoded(path: Path, start: int) -> Iterator[tuple[Any, float]]:
    """PyAV's frames from number `start` on, each with how many times as wide as high its pixels are."""
    with open_stream(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1)
        name = _ALPHA_DECODERS.get(stream.codec_context.name)
        if name is not None and stream.metadata.get("alpha_mode") == "1":
            for frame in islice(_with_alpha(container, stream, name), start, None):
                yield frame, aspect
            return
    for frame in frames_from(partial(open_stream, path), path, start):
        yield frame, aspect


def _with_alpha(container: Any, stream: Any, name: str) -> Iterator[Any]:
    from av import VideoCodecContext

    decoder: Any = VideoCodecContext.create(name, "r")
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _pixels(frame: Any) -> NDArray[np.uint8]:
    if any(component.is_alpha for component in frame.format.components):
        return np.asarray(over_white(Image.fromarray(frame.to_ndarray(format="rgba"))))
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return pixels


def _square(pixels: NDArray[np.uint8], aspect: float, path: Path) -> NDArray[np.uint8]:
    """Square pixels: the side that is shown longer than it is stored is stretched."""
    if not 1 / _MAX_STRETCH <= aspect <= _MAX_STRETCH:
        raise MediaError(f"{path} has pixels {aspect:g} times as wide as high; write it with square ones.")
    height, width = pixels.shape[:2]
    size = (round(width * max(aspect, 1.0)), round(height * max(1 / aspect, 1.0)))
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of the frame's display matrix, by which (x, y) is shown at (a x + c y, b x + d y)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
    return a, b, c, d


def _turned(pixels: NDArray[np.uint8], matrix: tuple[int, int, int, int] | None, path: Path) -> NDArray[np.uint8]:
    """One of the eight turns and mirrorings of a picture."""
    if matrix is None or not any(matrix):
        return pixels
    a, b, c, d = matrix
    if b == c == 0 and abs(a) == abs(d):
        across, down = a, d
    elif a == d == 0 and abs(b) == abs(c):
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    else:
        raise MediaError(f"{path} is to be turned by no multiple of 90 degrees; write it upright.")
    return pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]
