"""Reading the frames of a clip one at a time as upright RGB: a video, an animation, a folder of pictures, a picture."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDependencyError
from .image_io import read_animation, read_picture
from .video_io import FPS

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
"""File extensions of a folder's frames."""
ANIMATIONS = (*PICTURES, ".gif", ".apng")
"""File extensions that Pillow reads, animated or not."""
_SQUARE = "scale=iw*sar:ih,setsar=1"  # converts non-square pixels


@dataclass(frozen=True)
class VideoFrames:
    """An open clip: its frame rate and a one-time iterator of frames, uint8 (H, W, 3), all of one size."""

    fps: float
    frames: Iterator[NDArray[np.uint8]]


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder, without hidden ones (macOS's `._0000.png`) and subfolders (`.ipynb_checkpoints`)."""
    return [file for file in folder.iterdir() if not file.name.startswith(".") and not file.is_dir()]


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order.

    Raises: InputError if there are none.
    """
    files = [file for file in visible_files(folder) if file.suffix.lower() in PICTURES]
    if not files:
        raise InputError(f"{folder} is a folder without pictures; a video or a folder of frames is needed.")
    return sorted(files, key=lambda file: (natural_key(file.name), file.name))


def natural_key(name: str) -> list[str | int]:
    """Key of the natural order, `2.png` before `10.png`: text and numbers alternate."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def open_video(path: Path) -> VideoFrames:
    """Open a clip; the frames of a video or folder are decoded lazily.

    Args:
        path: a video file (decoded by imageio-ffmpeg's ffmpeg), an animated GIF, WebP, PNG or AVIF, a folder of
            pictures in natural order, or a picture; folders and single pictures have 16 frames per second.

    Raises: InputError if the file does not exist, cannot be decoded or has no frames, or (while reading) if frames
        differ in size; MissingDependencyError for a video file without imageio-ffmpeg.
    """
    if path.is_dir():
        return VideoFrames(FPS, _of_one_size(path, (read_picture(file) for file in frame_files(path))))
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    if path.suffix.lower() in ANIMATIONS:
        return _animation(path)
    return _decoded(path)


def _of_one_size(path: Path, frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    first = None
    for frame in frames:
        first = first or frame.shape
        if frame.shape != first:
            sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (first, frame.shape))
            raise InputError(f"{path} has frames of different sizes, {sizes}; one size is needed.")
        yield frame


def _animation(path: Path) -> VideoFrames:
    shown = list(read_animation(path))
    frames, last = [frame for _, frame in shown], shown[-1][0]
    rounding = max(len(frames), 5) / 1000  # a GIF's times are in whole centiseconds
    ours = len(frames) == 1 or abs(last - (len(frames) - 1) / FPS) <= rounding
    return VideoFrames(FPS if ours else (len(frames) - 1) / last, _of_one_size(path, iter(frames)))


def _decoded(path: Path) -> VideoFrames:
    remarks = tempfile.TemporaryFile()  # noqa: SIM115
    words = ["-hide_banner", "-nostdin", "-i", f"file:{path.absolute()}", "-vf", _SQUARE]
    decoder = subprocess.Popen(
        [_ffmpeg(), *words, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"],
        stdout=subprocess.PIPE,
        stderr=remarks,
    )
    frames = _from_pipe(path, decoder, remarks)
    first = next(frames)  # by now ffmpeg has printed its output rate
    remarks.seek(0)
    rate = re.search(rb"Output #0.*?([0-9.]+) fps", remarks.read(), re.DOTALL)
    return VideoFrames(float(rate[1]) if rate else FPS, chain([first], frames))


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingDependencyError(
            'reading a video needs imageio-ffmpeg, which is not installed. Run: pip install "contextanyone[cli]"'
        ) from error
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _from_pipe(path: Path, decoder: subprocess.Popen[bytes], remarks: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Frames of a stream of PPM pictures, at least one, else InputError; closing the iterator ends the process."""
    count = 0
    pipe = decoder.stdout
    assert pipe is not None
    try:
        with remarks, pipe:
            while pipe.readline().strip() == b"P6":
                width, height = (int(side) for side in pipe.readline().split())
                pipe.readline()  # the maximum value, 255
                content = pipe.read(3 * width * height)
                if len(content) < 3 * width * height:
                    break
                count += 1
                yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
            if decoder.wait() or not count:
                remarks.seek(0)
                lines = remarks.read().decode(errors="replace").strip().splitlines() or ["no video in it"]
                raise InputError(f"{path} cannot be decoded as a video ({lines[-1][-200:]}).")
    finally:
        if decoder.poll() is None:
            decoder.kill()
        decoder.wait()
