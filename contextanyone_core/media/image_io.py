"""Reading pictures that people bring: any common format, any mode, and a plain answer for what cannot be read.

NumPy and Pillow only, so that a bad picture is refused before torch is even imported.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

if TYPE_CHECKING:
    import torch

MIN_SIDE = 16
MAX_PIXELS = 64_000_000
MAX_KEPT_SIDE = 4096  # larger than any video; what is beyond costs gigabytes as float32 and shows nowhere
# Raster formats that Pillow decodes by itself. EPS, for one, would start Ghostscript on a stranger's file.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF"


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read the first frame of a picture as upright RGB, transparency laid over white.

    Grey, palette, transparent, 16-bit and CMYK pictures become 8-bit RGB; the camera's EXIF rotation is applied.
    The size is taken from the header and checked before anything is decoded; a picture with a side above 4096 is
    averaged down by a whole factor.

    Returns: uint8 (H, W, 3).
    Raises: InputError if there is no such file, or it is no picture, is damaged, too small or too large.
    Source: project.
    """
    _check_is_file(path)
    with warnings.catch_warnings(), _open(path) as image:
        warnings.simplefilter("ignore")  # remarks on odd headers; whatever matters raises
        _check_size(path, image.size)
        try:
            image.seek(0)
            image.load()
            upright = ImageOps.exif_transpose(image)
            rgb = _to_rgb(path, upright)
            factor = -(-max(rgb.size) // MAX_KEPT_SIDE)
            return np.array(rgb.reduce(factor) if factor > 1 else rgb, dtype=np.uint8)
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{path}: not enough memory to decode the picture; make it smaller.") from error
        except Exception as error:  # decoders of damaged files raise whatever they stumble over, SyntaxError included
            raise InputError(f"{path} is damaged and cannot be read as a picture ({error}).") from error


def picture_to_images(picture: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (H, W, 3) becomes float32 images (1, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def images_to_frames(images: torch.Tensor) -> NDArray[np.uint8]:
    """Images (1, 3, T, H, W) or (3, T, H, W) in [-1, 1] become frames, uint8 (T, H, W, 3), rounded and clamped.

    Raises: InputError if a pixel is not a finite number, or there is more than one video.
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
    """Open the header only; Pillow's own bomb check speaks first for the very largest."""
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
    except Exception as error:  # a damaged header fails inside the plugin, in any way
        raise InputError(f"{path} is damaged and cannot be read as a picture ({error}).") from error


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path} is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} is {width} x {height} pixels; at most {MAX_PIXELS:,} in all are accepted. Make it smaller."
        )


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{path} holds floating-point pixels of unknown range; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        return _sixteen_bit_to_rgb(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of 16-bit grey clips at 255: take the high byte instead."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
