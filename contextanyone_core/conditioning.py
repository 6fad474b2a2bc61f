"""From a reference picture to what the model reads: the dual encoder (paper, method; DESIGN 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from .errors import ShapeError

WHITE = 1.0


class SemanticEncoder(Protocol):
    """CLIP or its like: hidden states of square pictures (hosts/image.py)."""

    image_size: int

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Tokens (B, N, D) of images (B, 3, S, S) in [-1, 1], S = `image_size`."""
        ...


class VideoEncoder(Protocol):
    """The video VAE: normalised latents of images (hosts/vae.py)."""

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Latents (B, 16, t, h, w) of images (B, 3, T, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Reference:
    """One reference picture as the model reads it.

    Attributes:
        latents: (B, 16, 1, h, w), normalised.
        image_embeds: (B, N, D) CLIP tokens, or None for a model without the CLIP branch.
    """

    latents: torch.Tensor
    image_embeds: torch.Tensor | None


class DualEncoder:
    """The two encoders of a reference picture: the video VAE for its look, CLIP for its meaning.

    Args:
        video_encoder: gives the reference latents.
        semantic_encoder: gives the CLIP tokens; None for a model without the CLIP branch.
    """

    def __init__(self, video_encoder: VideoEncoder, semantic_encoder: SemanticEncoder | None) -> None:
        self.video_encoder = video_encoder
        self.semantic_encoder = semantic_encoder

    def encode(self, image: torch.Tensor, size: tuple[int, int]) -> Reference:
        """Encode one picture (1, 3, H, W) in [-1, 1] for a video of `size` = (height, width) pixels.

        Raises:
            ShapeError: the picture is not (1, 3, H, W).
        """
        # Paper: the reference's preparation is not described; aspect kept, padded with white, as Phantom does.
        latents = self.video_encoder.encode(pad_picture(image, size)[:, :, None])
        if self.semantic_encoder is None:
            return Reference(latents, None)
        return Reference(latents, self.semantic_encoder.encode(clip_picture(image, self.semantic_encoder.image_size)))


def fitted_size(picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture scaled to just fit inside `size`, aspect kept to the nearest pixel, at least 1."""
    (height, width), (high, wide) = picture, size
    scale = min(high / height, wide / width)
    return min(high, max(1, round(height * scale))), min(wide, max(1, round(width * scale)))


def pad_picture(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Fit a picture (1, 3, H, W) in [-1, 1] into `size` = (height, width): aspect kept, white around, never cropped.

    The picture stands in the middle. It is resized by an antialiased bicubic filter (torch's; the same in every
    host), and left as it is when it already fits exactly.

    Returns:
        (1, 3, height, width) float32 in [-1, 1].

    Raises:
        ShapeError: the picture is not (1, 3, H, W) with H and W of at least 1.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
        raise ShapeError(f"The reference picture has shape {tuple(image.shape)}; (1, 3, H, W) is needed.")
    image = image.float()
    fitted = fitted_size((image.shape[2], image.shape[3]), size)
    if fitted != tuple(image.shape[2:]):
        image = F.interpolate(image, size=fitted, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    below, beside = size[0] - fitted[0], size[1] - fitted[1]
    margins = (beside // 2, beside - beside // 2, below // 2, below - below // 2)
    return F.pad(image, margins, value=WHITE)


def clip_picture(image: torch.Tensor, side: int) -> torch.Tensor:
    """A picture (1, 3, H, W) as the square (1, 3, side, side) that CLIP reads: white around, never cropped."""
    return pad_picture(image, (side, side))
