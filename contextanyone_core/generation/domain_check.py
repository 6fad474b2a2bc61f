"""Domain check: is a picture in the training domain of a model, measured by its VAE's reconstruction error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from ..encoders.reference import fitted_size, pad_picture

HEADER_KEY = "familiar_psnr"
"""Metadata of a VAE's weight file: pictures reconstructed below this PSNR (dB) are out of domain."""
_SIZE = (128, 128)  # (height, width) at which training/parts/vae.py measures the threshold; the PSNR depends on it
_LARGEST = 160  # pixels of a side at which the miniature loses a little of the character, and at 192 half


class RoundTrip(Protocol):
    """Protocol of a video VAE, such as `encoders.vae.VideoVAE`."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of images (B, 3, T, H, W) in [-1, 1]."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of latents."""
        ...


def round_trip_psnr(vae: RoundTrip, image: torch.Tensor) -> float:
    """Reconstruction PSNR in dB of a picture at 128 x 128 through the VAE; white margins do not count.

    A VAE trained on one small domain reconstructs pictures of its domain well and all others badly. The
    size is fixed, as the PSNR depends on it: fewer pixels are reconstructed worse.

    Args:
        vae: the model's own.
        image: (1, 3, H, W) in [-1, 1].

    Source: project.
    """
    padded = pad_picture(image, _SIZE)
    redrawn = vae.decode(vae.encode(padded[:, :, None]))[:, :, 0].to(padded)
    (high, wide), (height, width) = fitted_size((image.shape[2], image.shape[3]), _SIZE), _SIZE
    top, left = (height - high) // 2, (width - wide) // 2
    error = (redrawn - padded)[..., top : top + high, left : left + wide]
    mean = float(error.double().square().mean())
    return math.inf if mean == 0 else 10 * math.log10(4 / mean)


def beyond_the_miniature(size: tuple[int, int]) -> str:
    """What to tell of the miniature at a (height, width) that it cannot do; "" up to 160 pixels.

    Source: project; docs/EVALUATION.md has the numbers.
    """
    if max(size) <= _LARGEST:
        return ""
    return (
        f"The miniature was trained at 128 x 128 pixels and 17 frames, and the video is {size[1]} x {size[0]}: at 192 "
        "x 192 half of the character is lost already, and a large video takes very long on a CPU. Take 128 x 128."
    )


def domain_threshold(metadata: Mapping[str, str]) -> float | None:
    """The threshold in a VAE file's metadata; None where it holds none, as full-size VAEs do."""
    try:
        threshold = float(metadata[HEADER_KEY])
    except (KeyError, ValueError):
        return None
    return threshold if math.isfinite(threshold) else None
