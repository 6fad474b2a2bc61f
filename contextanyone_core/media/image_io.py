"""Reading pictures: all common formats and modes, with a clear error for files that cannot be read.

NumPy and Pillow only, so that a bad picture is refused before torch is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import InputError

if TYPE_CHECKING:
    import torch

MIN_SIDE = 16
MAX_PIXELS = 64_000_000
MAX_KEPT_SIDE = 4096  # larger than any video; more would cost gigabytes as float32 without a visible difference
# Raster formats that Pillow decodes by itself. EPS, for example, would run Ghostscript on an untrusted file.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF"
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")  # the pages of a TIFF are not an animation
_TIMED = ("WEBP", "AVIF")  # formats that give each frame's time; the others give durations only
_DURATION = 100.0  # milliseconds for a frame without a duration, as in browsers
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)
_STATES_ORIENTATION = {"exif", "xmp", "XML:com.adobe.xmp"}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read the first frame of a picture as upright RGB, with transparency composited over white.

    Grey, palette, transparent, 16-bit and CMYK pictures are converted to 8-bit RGB, the colours of an embedded profile
    to sRGB; the EXIF orientation is applied.
    The size is checked in the header before decoding; a picture with a side above 4096 pixels is reduced by an integer
    factor (box average).

    Returns: uint8 (H, W, 3).
    Raises: InputError if the file does not exist, is not a picture, or is damaged, too small or too large.
    Source: project.
    """
    with _open(path) as image:
        return _decode(path, image, 0)


def read_shown(path: Path) -> NDArray[np.uint8]:
    """As `read_picture`, of a picture that has to show something.

    Raises: InputError also if every pixel is transparent.
    """
    with _open(path) as image:
        picture = _decode(path, image, 0)
        if _has_alpha(image) and not image.convert("RGBA").getchannel("A").getbbox():
            raise InputError(f"{path} is transparent everywhere; give a picture that shows a character.")
    return picture


def read_animation(path: Path) -> Iterator[tuple[float, float, NDArray[np.uint8]]]:
    """Read every frame of an animated PNG, WebP, GIF or AVIF; any other picture is a single frame.

    Yields: when the frame appears and when it goes, in seconds since the first frame, and the frame in the format of
        `read_picture`. A frame without a duration lasts 0.1 seconds.
    Raises: InputError as `read_picture`.
    Source: project.
    """
    with _open(path) as image:
        time, timed = 0.0, image.format in _TIMED
        for index in _animation(path, image):
            picture = _decode(path, image, index)
            start = float(image.info["timestamp"]) if timed else time
            stated = image.info.get("duration")
            duration = float(stated) if isinstance(stated, int | float) else 0.0
            time, timed = start + (duration or _DURATION), timed and duration > 0
            yield start / 1000, time / 1000, picture


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the result of `read_picture`, from the header alone.

    Raises: InputError as `read_picture`, except for damage after the header.
    """
    with _open(path) as image:
        width, height = image.size  # already upright for a TIFF
        stated = image.format != "TIFF" and image.info.keys() & _STATES_ORIENTATION  # else a PNG would be decoded
        if stated and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
            width, height = height, width
        factor = _factor(image.size)
        return -(-width // factor), -(-height // factor)


def picture_to_images(picture: NDArray[np.uint8]) -> torch.Tensor:
    """Convert uint8 (H, W, 3) to float32 images (1, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def frames_to_images(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Convert frames, uint8 (T, H, W, 3), to float32 images (1, 3, T, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0


def images_to_frames(images: torch.Tensor) -> NDArray[np.uint8]:
    """Convert images (1, 3, T, H, W) or (3, T, H, W) in [-1, 1] to frames, uint8 (T, H, W, 3), rounded and clamped.

    Raises: InputError if a pixel is not finite, or the batch holds more than one video.
    """
    import torch

    if images.ndim == 5 and images.shape[0] == 1:
        images = images[0]
    if images.ndim != 4 or images.shape[0] != 3:
        raise InputError(f"frames come from images of shape (3, T, H, W), not {tuple(images.shape)}.")
    if not bool(torch.isfinite(images).all()):
        raise InputError("the video has pixels that are not finite numbers; lower the guidance or use --dtype float32.")
    scaled = ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames: NDArray[np.uint8] = scaled.permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames


def _check_is_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; a picture file is needed.")
        if not path.exists():
            raise InputError(f"{path}: there is no such picture.")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file; a picture file is needed.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty; a picture file is needed.")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _open(path: Path) -> Image.Image:
    """Open a picture and check its header; for huge pictures Pillow's decompression-bomb check raises first."""
    _check_is_file(path)
    image = _open_any(path)
    try:
        _check_size(path, image.size)
        _check_mode(path, image)
    except InputError:
        image.close()
        raise
    return image


def _open_any(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.init()
            return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has too many pixels; at most {MAX_PIXELS:,} are accepted. Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture; {READABLE} is needed.") from error
    except Exception as error:  # a damaged header can raise anything inside the plugin
        raise InputError(f"{path} is damaged and cannot be read as a picture ({error}).") from error


def _animation(path: Path, image: Image.Image) -> range:
    """Indices of the animation's frames: a PNG may start with a still picture for viewers without animation."""
    if image.format not in ANIMATED:
        return range(1)
    try:
        return range(1 if getattr(image, "default_image", False) else 0, getattr(image, "n_frames", 1))
    except Exception as error:  # some formats scan the whole file to count frames
        raise InputError(f"{path} is damaged and cannot be read as a picture ({error}).") from error


def _decode(path: Path, image: Image.Image, index: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about odd headers; real problems raise
            image.seek(index)
            image.load()
            rgb = _to_rgb(ImageOps.exif_transpose(image))
            factor = _factor(rgb.size)
            return np.array(rgb.reduce(factor) if factor > 1 else rgb, dtype=np.uint8)
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory to decode the picture; make it smaller.") from error
    except Exception as error:  # on damaged files decoders raise any exception, SyntaxError included
        raise InputError(f"{path} is damaged and cannot be read as a picture ({error}).") from error


def _factor(size: tuple[int, int]) -> int:
    return -(-max(size) // MAX_KEPT_SIDE)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path} is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} is {width} x {height} pixels; at most {MAX_PIXELS:,} in all are accepted. Make it smaller."
        )


def _check_mode(path: Path, image: Image.Image) -> None:
    """Refuse pixels whose value range is unknown. Mode I of the other formats is unsigned 16-bit grey."""
    if image.mode == "F":
        raise InputError(f"{path} holds floating-point pixels of unknown range; save it with 8 or 16 bits.")
    if image.mode == "I" and image.format == "TIFF":
        raise InputError(f"{path} holds 32-bit or signed integers of unknown range; save it with 8 or 16 bits.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _sixteen_bit_to_rgb(image)
    if _has_alpha(image):
        return over_white(_to_srgb(image.convert("RGBA")))
    return _to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB")).convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    """The colours that an embedded profile means, such as a phone's Display P3, in sRGB.

    A picture without a profile is sRGB; a profile that is damaged or of another number of channels is ignored, as
    viewers do.
    """
    if not (embedded := image.info.get("icc_profile")):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(embedded))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):  # rounding alone would change
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        return image


def _has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def over_white(layer: Image.Image) -> Image.Image:
    """An RGBA picture composited over white, as RGB; used for pictures and videos."""
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey by its high byte; Pillow's own conversion clips at 255."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
