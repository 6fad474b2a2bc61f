"""Reading the frames of a clip one at a time as upright RGB: a video, an animation, a folder of pictures, a picture.

Transparency is over white, pixels are square; what cannot be shown faithfully is refused.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .image_io import over_white, read_animation, read_picture
from .video_io import FPS, ffmpeg_path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
"""File extensions of a folder's frames."""
ANIMATIONS = (*PICTURES, ".gif", ".apng")
"""File extensions that Pillow reads, animated or not."""
_ROUNDED = 0.012  # seconds by which a frame's time may be off: a GIF has whole centiseconds
_MAX_RATE, _ENOUGH = (
    240,
    60,
)  # frames a second; of a file without even times ffmpeg would repeat frames a thousand times
_SQUARE = "scale=iw*max(sar\\,1):ih/min(sar\\,1),setsar=1"  # the side that is shown longer is stretched
_MAX_STRETCH = 4  # of a pixel's sides; beyond it the number is a mistake
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}  # transfer functions, as ffmpeg prints them
_ALPHA = re.compile(r"\b(yuva4|gbrap|rgba|bgra|argb|abgr|ya8|ya16|pal8)")  # pixel formats with transparency
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # ffmpeg's own decoders drop the alpha of a WebM
_Pictures = Generator[NDArray[np.uint8], None, None]


@dataclass(frozen=True)
class VideoFrames:
    """An open clip: its frame rate and a one-time iterator of frames, uint8 (H, W, 3), all of one size.

    seconds: how long it is by what the file states, or by the number of pictures; None where neither is known.
    """

    fps: float
    frames: Iterator[NDArray[np.uint8]]
    seconds: float | None = None


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

    Raises: InputError if the file does not exist, cannot be decoded or has no frames, is HDR, is rotated by no multiple
        of 90 degrees or has pixels far from square, or (while reading) if frames differ in size;
        MissingDependencyError for a video file without an ffmpeg that runs (`ffmpeg_path`).
    """
    if path.is_dir():
        files = frame_files(path)
        return VideoFrames(FPS, _of_one_size(path, (read_picture(file) for file in files)), len(files) / FPS)
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
    """An animation at its own rate, or at 16 a second where its frames last differently.

    Pillow and browsers write frames that are alike as one that lasts longer, so a pose that is held is a long frame.
    """
    shown = list(read_animation(path))
    frames = [frame for *_, frame in shown]
    starts, end = np.asarray([start for start, *_ in shown]), shown[-1][1]
    step = starts[-1] / (len(frames) - 1) if len(frames) > 1 else 1 / FPS
    uneven = np.abs(starts - step * np.arange(len(frames))).max() > _ROUNDED or end - starts[-1] > 1.5 * step
    if uneven:
        count = max(1, int(end * FPS + 0.25))  # of a GIF whose end is rounded too
        chosen = np.searchsorted(starts, np.arange(count) / FPS + _ROUNDED, side="right") - 1
        return VideoFrames(FPS, _of_one_size(path, (frames[index] for index in chosen)), count / FPS)
    ours = len(frames) == 1 or abs(step - 1 / FPS) * (len(frames) - 1) <= max(len(frames), 5) / 1000
    rate = FPS if ours else 1 / step
    return VideoFrames(rate, _of_one_size(path, iter(frames)), len(frames) / rate)


def _decoded(path: Path) -> VideoFrames:
    """A video file as a player shows it: its default stream, upright, with square pixels, over white."""
    frames, remarks = _start(path, "rgb24")
    first = next(frames)  # by now ffmpeg has described the stream
    stream, metadata, rate = _description(remarks)
    seconds = _stated_seconds(remarks)
    _refuse_unfaithful(path, stream, metadata)
    if not rate:
        raise InputError(f"{path} does not say how many frames a second it has; write it anew, as an mp4 for example.")
    marked = re.search("alpha_mode *: 1", metadata)
    pixels, filters = "rgba" if marked or _ALPHA.search(stream) else "rgb24", _SQUARE
    if rate > _MAX_RATE:
        rate, filters = _ENOUGH, f"{_SQUARE},fps={_ENOUGH}"
    if (pixels, filters) != ("rgb24", _SQUARE):
        frames.close()
        codec = re.search("Video: ([a-z0-9]+)", stream)
        decoder = _ALPHA_DECODERS.get(codec[1]) if codec and marked else None
        frames, _ = _start(path, pixels, decoder, filters)
        first = next(frames)
    return VideoFrames(rate, chain([first], frames), seconds)


def _start(path: Path, pixels: str, decoder: str | None = None, filters: str = _SQUARE) -> tuple[_Pictures, Path]:
    """Frames from a new ffmpeg process, and the file with what it prints, which is removed with the frames.

    The file is read by its name: a handle shared with the process would share its position too, and a read in the
    middle of a remark would move where ffmpeg writes on.
    """
    chosen = ["-c:v", decoder] if decoder else []
    words = ["-hide_banner", "-nostdin", *chosen, "-i", f"file:{path.absolute()}", "-vf", filters]
    command = [ffmpeg_path(), *words, "-f", "image2pipe", "-c:v", "pam", "-pix_fmt", pixels, "pipe:1"]
    remarks = Path(tempfile.mkdtemp(prefix="ffmpeg-")) / "remarks.log"
    with remarks.open("wb") as written:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written)
    return _from_pipe(path, process, remarks), remarks


def _description(remarks: Path) -> tuple[str, str, float]:
    """What ffmpeg prints of the stream that it decodes: its line, its metadata, and the output's frame rate, or 0."""
    source, _, rest = remarks.read_bytes().decode(errors="replace").partition("Stream mapping:")
    mapped = re.search(r"Stream #0:(\d+)", rest)
    found = mapped and re.search(rf"^  (Stream #0:{mapped[1]}\b.*)\n((?:    .*\n)*)", source, re.MULTILINE)
    rate = re.search(r"^  Stream #0:0.*, ([0-9.]+)(k?) fps", rest.partition("Output #0")[2], re.MULTILINE)
    a_second = float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0
    return found[1] if found else "", found[2] if found else "", a_second


def _stated_seconds(remarks: Path) -> float | None:
    """How long the file is by its header, as ffmpeg prints it; None where it does not say."""
    stated = re.search(rb"Duration: (\d+):(\d+):([0-9.]+)", remarks.read_bytes())
    if not stated:
        return None
    hours, minutes, seconds = (float(part) for part in stated.groups())
    return 3600 * hours + 60 * minutes + seconds


def _refuse_unfaithful(path: Path, stream: str, metadata: str) -> None:
    if "(attached pic)" in stream:
        raise InputError(f"{path} has no video in it, only a cover picture.")
    if transfer := next((name for key, name in _HDR.items() if f"/{key}" in stream), None):
        raise InputError(f"{path} is HDR ({transfer}); convert it to SDR, BT.709, first.")
    sides = re.search(r"SAR (\d+):(\d+)", stream)
    aspect = int(sides[1]) / int(sides[2]) if sides and int(sides[1]) and int(sides[2]) else 1.0
    if not 1 / _MAX_STRETCH <= aspect <= _MAX_STRETCH:
        raise InputError(f"{path} has pixels {aspect:g} times as wide as high; write it with square ones.")
    rotation = re.search(r"rotation of (-?[0-9.]+) degrees", metadata)
    if rotation and float(rotation[1]) % 90:
        raise InputError(f"{path} is rotated by {float(rotation[1]):g} degrees; write it upright.")


def _from_pipe(path: Path, process: subprocess.Popen[bytes], remarks: Path) -> _Pictures:
    """Frames of a stream of PAM pictures, at least one, else InputError; closing the iterator ends the process."""
    count = 0
    pipe = process.stdout
    assert pipe is not None
    try:
        with pipe:
            while pipe.readline().strip() == b"P7":
                header: dict[bytes, bytes] = {}
                while (words := pipe.readline().split()) and words != [b"ENDHDR"]:
                    header[words[0]] = words[-1]
                width, height, depth = (int(header.get(key, 0)) for key in (b"WIDTH", b"HEIGHT", b"DEPTH"))
                content = pipe.read(depth * width * height)
                if len(content) < depth * width * height:
                    break
                count += 1
                frame = np.frombuffer(content, np.uint8).reshape(height, width, depth)
                yield frame if depth == 3 else np.asarray(over_white(Image.fromarray(frame)))
            if process.wait() or not count:
                printed = remarks.read_bytes().decode(errors="replace").strip().splitlines() or ["no video in it"]
                raise InputError(f"{path} cannot be decoded as a video ({printed[-1][-200:]}).")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        shutil.rmtree(remarks.parent, ignore_errors=True)
