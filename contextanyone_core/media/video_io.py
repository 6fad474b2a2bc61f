"""Writing clips atomically as .mp4, .gif, .webp or a folder of PNG, with their generation record as metadata.

An interrupted or failed run leaves nothing under the final name (`atomic_file`). NumPy and Pillow only; H.264 is
encoded by imageio-ffmpeg's ffmpeg.
"""

from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ..atomic_file import is_disk_full, staging, whole_files
from ..errors import InputError, MissingDependencyError

FPS = 16  # Wan 2.1's frame rate (its sample_fps)
ENDINGS = (".mp4", ".gif", ".webp")
Metadata = Mapping[str, Any]

_EXIF_DESCRIPTION = 0x010E
_PNG_KEY = "Comment"


def contact_path(path: Path) -> Path:
    """Path of a clip's contact sheet: `clip.contact.png` for `clip.mp4` and for the folder `clip`."""
    return path.with_name(f"{path.stem if ending_of(path) in ENDINGS else path.name}.contact.png")


def ending_of(path: Path) -> str:
    """The file extension in lower case, which selects the format; "" is a folder of PNG."""
    return path.suffix.lower()


def check_output(path: Path) -> None:
    """Check that a clip can be written to `path`, by writing a temporary entry beside it.

    Raises: InputError for an unknown extension, a folder that is missing or not writable, or an existing file or folder
        that a clip must not replace; MissingDependencyError for a video if there is no encoder.
    """
    check_name(path)
    if ending_of(path) == ".mp4":
        ffmpeg_path()
    try:
        _check_free(path)
        if not path.parent.is_dir():
            raise InputError(f"the output folder {path.parent} does not exist; make it first.")
        with staging(path.parent) as folder:
            (folder / path.name).touch()
            (folder / contact_path(path).name).touch()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        raise InputError(f"cannot write to {path}: {getattr(error, 'strerror', None) or error}.") from error


def check_name(path: Path) -> None:
    """Check that a path has a valid file name and a known extension.

    Raises: InputError if not.
    """
    ending = ending_of(path)
    if path.name == "-":
        raise InputError("a clip cannot be written to standard output; give a file name such as out.mp4.")
    if not path.name or path.name.startswith("."):
        raise InputError(f"{path} has no plain file name; give one such as out.mp4.")
    if ending and ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise InputError(f"{path} ends in {ending}; known are {known}, and no ending for a folder of PNG pictures.")


def _check_free(path: Path) -> None:
    if ending_of(path) in ENDINGS and path.is_dir():
        raise InputError(f"{path} is a folder; give a file name such as {path / 'out.mp4'}.")
    if ending_of(path) not in ENDINGS and path.exists():
        if not path.is_dir():
            raise InputError(f"{path} is a file; frames are written into a new folder. Give another name.")
        if any(path.iterdir()):
            raise InputError(f"the folder {path} is not empty; frames are written into a new one. Give another name.")
    if contact_path(path).is_dir():
        raise InputError(f"{contact_path(path)} is a folder, and the contact sheet would stand there.")


def save_clip(path: Path, frames: NDArray[np.uint8], sheet: Image.Image, metadata: Metadata) -> Path:
    """Write a clip and its contact sheet, both or neither, replacing existing ones.

    Args:
        path: ends in .mp4, .gif or .webp, or has no extension for a folder of PNG; see `check_output`.
        frames: uint8 (T, H, W, 3); H and W even for .mp4.
        sheet: from `contact_sheet`.
        metadata: the generation record, stored in every file as JSON; `read_metadata` reads it.

    Returns: the path of the contact sheet.
    Raises: OSError if the disk is full or fails.
    """
    sheet_path = contact_path(path)
    with whole_files(sheet_path, path) as folder:
        write_clip(folder / path.name, frames, metadata)
        _save_png(folder / sheet_path.name, sheet, metadata)
    return sheet_path


def write_clip(path: Path, frames: NDArray[np.uint8], metadata: Metadata) -> None:
    """Write frames, uint8 (T, H, W, 3), in the format of the extension. Not atomic; `save_clip` is."""
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}
    writers.get(ending_of(path), _write_folder)(path, frames, metadata)


def _to_json(metadata: Metadata) -> str:
    """JSON in ASCII, with control characters escaped, so that every container stores it unchanged."""
    return json.dumps(metadata, ensure_ascii=True, sort_keys=True, allow_nan=False)


def ffmpeg_path() -> str:
    """Path of imageio-ffmpeg's ffmpeg, which reads and writes videos.

    Raises: MissingDependencyError if the package is not installed, or its ffmpeg does not run here.
    """
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except ImportError as error:
        raise MissingDependencyError(
            "reading and writing videos needs imageio-ffmpeg; `pip install 'imageio[ffmpeg]'`, or use a .webp."
        ) from error
    except RuntimeError as error:  # ffmpeg is missing or does not start: too little memory, or built for another system
        raise MissingDependencyError(
            "reading and writing videos needs an ffmpeg, and imageio-ffmpeg finds none that runs here; repair it by "
            "`pip install --force-reinstall imageio-ffmpeg`, see that memory is not limited, or use a .webp."
        ) from error


def _write_mp4(path: Path, frames: NDArray[np.uint8], metadata: Metadata) -> None:
    """H.264, yuv420p, tagged BT.709, index at the front; one thread, so that equal frames give equal files."""
    _, height, width, _ = frames.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS), "-i", "pipe:0"]
    colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    scale = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact"
    codec = ["-vf", scale, "-c:v", "libx264", "-preset", "medium", "-crf", "16", "-pix_fmt", "yuv420p", *colours]
    exact = ["-threads", "1", "-filter_threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    tags = ["-movflags", "+faststart", "-metadata", f"comment={_to_json(metadata)}"]
    target = f"file:{path.absolute()}"
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", *source, *codec, *exact, *tags, "-y", target]
    # A session of its own: Ctrl-C reaches only this process, which then ends the encoder.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as encoder:
        try:
            _, remarks = encoder.communicate(frames.tobytes())
        except BaseException:
            encoder.kill()
            raise
    _check_encoder(encoder.returncode, remarks.decode(errors="replace"))


def _check_encoder(code: int, remarks: str) -> None:
    limit = getattr(signal, "SIGXFSZ", None)  # Windows has no such signal
    if "File too large" in remarks or (limit is not None and code == -limit):
        raise OSError(errno.EFBIG, "the video is larger than this system lets a file be")
    if "No space left" in remarks:
        raise OSError(errno.ENOSPC, "no space left on the disk for the video")
    if code != 0:
        lines = remarks.strip().splitlines() or ["no message"]
        raise OSError(errno.EIO, f"the H.264 encoder failed with code {code}: {lines[-1]}")


def _write_gif(path: Path, frames: NDArray[np.uint8], metadata: Metadata) -> None:
    pictures = _pictures(frames)
    _save_animation(path, pictures, durations(len(pictures), step=10), {"comment": _to_json(metadata).encode()})


def _write_webp(path: Path, frames: NDArray[np.uint8], metadata: Metadata) -> None:
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = _to_json(metadata)
    pictures = _pictures(frames)
    options = {"exif": exif.tobytes(), "quality": 90, "method": 4}
    _save_animation(path, pictures, durations(len(pictures), step=1), options)


def _save_animation(path: Path, pictures: list[Image.Image], delays: list[int], options: dict[str, Any]) -> None:
    first, *rest = pictures
    buffer = io.BytesIO()  # Pillow would hide the reason of a failed write to a file
    kind = ending_of(path).lstrip(".")
    first.save(buffer, format=kind, save_all=True, append_images=rest, duration=delays, loop=0, **options)
    path.write_bytes(buffer.getvalue())


def durations(num_frames: int, *, step: int) -> list[int]:
    """Duration of each frame in milliseconds, in multiples of `step`, drifting from `FPS` by at most one step."""
    ends = [round(1000 * (index + 1) / FPS / step) * step for index in range(num_frames)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _write_folder(path: Path, frames: NDArray[np.uint8], metadata: Metadata) -> None:
    path.mkdir()
    for index, picture in enumerate(_pictures(frames)):
        _save_png(path / f"frame_{index:05d}.png", picture, metadata)


def _pictures(frames: NDArray[np.uint8]) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


def _save_png(path: Path, picture: Image.Image, metadata: Metadata) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(_PNG_KEY, _to_json(metadata))
    buffer = io.BytesIO()
    picture.save(buffer, format="png", pnginfo=info)
    path.write_bytes(buffer.getvalue())


def read_metadata(path: Path) -> dict[str, Any]:
    """The generation record that `save_clip` stored in a video, a folder of PNG or a contact sheet.

    Raises: InputError if the file is missing or unreadable, or has no record.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    if path.is_dir():
        first = min(path.glob("frame_*.png"), default=None)
        if first is None:
            raise InputError(f"{path} is a folder without frame_*.png; give a video or a folder of frames.")
        path = first
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; give a video or a picture.")
    text = _mp4_comment(path) if ending_of(path) == ".mp4" else _picture_comment(path)
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} does not say how it was made: its metadata are not ContextAnyone's.") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path} does not say how it was made: its metadata are not ContextAnyone's.")
    return metadata


def _picture_comment(path: Path) -> str:
    try:
        with Image.open(path, formats=["PNG", "GIF", "WEBP"]) as image:
            if image.format == "WEBP":
                return str(image.getexif().get(_EXIF_DESCRIPTION, ""))
            comment = image.info.get(_PNG_KEY) or image.info.get("comment", b"")
            return comment.decode("ascii", errors="replace") if isinstance(comment, bytes) else str(comment)
    except Exception as error:  # on damaged files decoders raise any exception
        raise InputError(f"{path} cannot be read as a video or a picture ({error}).") from error


def _mp4_comment(path: Path) -> str:
    source = ["-i", f"file:{path.absolute()}"]
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", *source, "-f", "ffmetadata", "-"]
    result = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise InputError(f"{path} cannot be read as a video ({lines[-1]}).")
    for line in result.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key == "comment":
            return _unescape(value)
    return ""


def _unescape(value: str) -> str:
    """Undo ffmetadata's escaping of `= ; # \\`; JSON in ASCII has no line breaks, which it would escape too."""
    characters = iter(value)
    return "".join(next(characters, "") if character == "\\" else character for character in characters)
