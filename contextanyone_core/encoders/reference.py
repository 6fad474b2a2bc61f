"""The dual encoder of reference pictures: VAE latents and CLIP tokens (paper, method)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from ..config import ContextAnyoneConfig
from ..errors import InputError, ShapeError
from ..media.image_io import MIN_SIDE
from ..shapes import LONG_EDGE

WHITE = 1.0
_STRIDE = 16


class SemanticEncoder(Protocol):
    """Protocol of the image encoder, such as CLIP: hidden states of square pictures (encoders/image.py)."""

    image_size: int

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Tokens (B, N, D) of images (B, 3, S, S) in [-1, 1], S = `image_size`."""
        ...


class VideoEncoder(Protocol):
    """Protocol of the video VAE: normalised latents of images (encoders/vae.py)."""

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Latents (B, 16, t, h, w) of images (B, 3, T, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class EncodedReference:
    """One encoded reference picture.

    Attributes:
        latents: (B, 16, 1, h, w), normalised.
        image_embeds: (B, N, D) CLIP tokens, or None for a model without the CLIP branch.
    """

    latents: torch.Tensor
    image_embeds: torch.Tensor | None


class DualEncoder:
    """The two encoders of a reference picture: the video VAE for dense appearance, CLIP for semantics.

    The command line and ComfyUI use it, each with its own encoders. CLIP tokens do not depend on the size of the video,
    so they can be computed before it is known.

    Args:
        video_encoder: encodes the reference latents.
        semantic_encoder: encodes the CLIP tokens; None for a model without the CLIP branch.
        own_size: whether a picture keeps its own size (`own_size_picture`), whatever the video's is.
    """

    def __init__(
        self, video_encoder: VideoEncoder, semantic_encoder: SemanticEncoder | None, *, own_size: bool = False
    ) -> None:
        self.video_encoder = video_encoder
        self.semantic_encoder = semantic_encoder
        self.own_size = own_size

    def encode(self, image: torch.Tensor, size: tuple[int, int]) -> EncodedReference:
        """Encode one picture (1, 3, H, W) in [-1, 1] for a video of `size` = (height, width) pixels.

        Raises:
            ShapeError: the picture is not (1, 3, H, W).
        """
        return EncodedReference(self.latents(image, size), self.semantic_tokens(image))

    def latents(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Latents (1, 16, 1, h, w) of a picture (1, 3, H, W) in [-1, 1] for a video of `size` = (height, width).

        Raises:
            ShapeError: the picture is not (1, 3, H, W).
        """
        # Paper: the reference's preparation is not described; aspect kept, padded with white, as Phantom does.
        fitted = own_size_picture(image) if self.own_size else pad_picture(image, size)
        return self.video_encoder.encode(fitted[:, :, None])

    def semantic_tokens(self, image: torch.Tensor) -> torch.Tensor | None:
        """CLIP tokens (1, N, D) of a picture (1, 3, H, W) in [-1, 1]; None for a model without the CLIP branch.

        Raises:
            ShapeError: the picture is not (1, 3, H, W).
        """
        encoder = self.semantic_encoder
        return None if encoder is None else encoder.encode(clip_picture(image, encoder.image_size))


def fitted_size(picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture scaled to just fit inside `size`, aspect kept to the nearest pixel, at least 1."""
    (height, width), (high, wide) = picture, size
    scale = min(high / height, wide / width)
    return min(high, max(1, round(height * scale))), min(wide, max(1, round(width * scale)))


def pad_picture(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Fit a picture (1, 3, H, W) in [-1, 1] into `size` = (height, width): aspect kept, white around, never cropped.

    The picture is centred. It is resized by torch's antialiased bicubic filter, the same on the command line and in
    ComfyUI, and not at all if it already fits exactly.

    Returns:
        (1, 3, height, width) float32 in [-1, 1].

    Raises:
        ShapeError: the picture is not (1, 3, H, W) with H and W of at least 1.
    """
    _check_shape(image)
    image = image.float()
    fitted = fitted_size((image.shape[2], image.shape[3]), size)
    if fitted != tuple(image.shape[2:]):
        image = F.interpolate(image, size=fitted, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    below, beside = size[0] - fitted[0], size[1] - fitted[1]
    margins = (beside // 2, beside - beside // 2, below // 2, below - below // 2)
    return F.pad(image, margins, value=WHITE)


def own_size_picture(image: torch.Tensor) -> torch.Tensor:
    """A picture (1, 3, H, W) in [-1, 1] at its own size: the long side at most 848, both sides multiples of 16.

    It is reduced by area and never enlarged beyond rounding, as ComfyUI's BerniniConditioning does.

    Raises:
        ShapeError: the picture is not (1, 3, H, W) with H and W of at least 1.
    """
    return F.interpolate(image.float(), size=own_picture_size(image), mode="area")


def own_picture_size(image: torch.Tensor) -> tuple[int, int]:
    """(height, width) of `own_size_picture`; raises as it does."""
    _check_shape(image)
    height, width = image.shape[2:]
    scale = min(LONG_EDGE / max(height, width), 1.0)
    return _snapped(height * scale), _snapped(width * scale)


def _snapped(side: float) -> int:
    return max(_STRIDE, round(side / _STRIDE) * _STRIDE)


def clip_picture(image: torch.Tensor, side: int) -> torch.Tensor:
    """A picture (1, 3, H, W) as CLIP's square input (1, 3, side, side): padded with white, never cropped."""
    return pad_picture(image, (side, side))


def check_picture(image: torch.Tensor) -> None:
    """Check that a picture can be encoded.

    Args:
        image: (1, 3, H, W) in [-1, 1].

    Raises:
        ShapeError: the picture is not (1, 3, H, W).
        InputError: the picture is too small, or holds NaN or infinite values.
    """
    _check_shape(image)
    height, width = image.shape[2:]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"The picture is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed.")
    if not bool(torch.isfinite(image).all()):
        raise InputError("The picture holds NaN or infinite values; what made it went wrong. Use another picture.")


def _check_shape(image: torch.Tensor) -> None:
    if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
        raise ShapeError(f"The reference picture has shape {tuple(image.shape)}; (1, 3, H, W) is needed.")


def on_white(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Composite the subject of a picture on white, like Phantom's references.

    Args:
        image: (1, 3, H, W) in [-1, 1].
        mask: (1, 1, h, w), 1 on the subject, 0 elsewhere; resized to the picture.

    Raises:
        ShapeError: the picture is not (1, 3, H, W), or the mask not (1, 1, h, w).
        InputError: the mask holds NaN or is empty.
    """
    _check_shape(image)
    if mask.ndim != 4 or mask.shape[:2] != (1, 1) or 0 in mask.shape:
        raise ShapeError(f"The mask has shape {tuple(mask.shape)}; (1, 1, H, W) is needed.")
    if not bool(torch.isfinite(mask).all()):
        raise InputError("The mask holds NaN or infinite values; what made it went wrong. Use another mask.")
    if float(mask.max()) <= 0:
        raise InputError("The mask is empty: no pixel of it is above 0. It must be 1 where the subject is.")
    share = mask.float().clamp(0, 1)
    if share.shape[2:] != image.shape[2:]:
        size = (image.shape[2], image.shape[3])
        share = F.interpolate(share, size=size, mode="bilinear", antialias=True, align_corners=False)
    return image * share + WHITE * (1 - share)


def is_on_white(image: torch.Tensor) -> bool:
    """Whether at least half of a picture's border is white: its subject is cut out, as by `on_white`.

    Args:
        image: (1, 3, H, W) in [-1, 1].

    Raises:
        ShapeError: the picture is not (1, 3, H, W).
    """
    _check_shape(image)
    white = (image > 0.95).all(dim=1)[0]
    border = torch.cat([white[0], white[-1], white[1:-1, 0], white[1:-1, -1]])
    return bool(border.float().mean() >= 0.5)


def fit_text_embeds(text_embeds: torch.Tensor, config: ContextAnyoneConfig, name: str = "The prompt") -> torch.Tensor:
    """Text embeddings of any length as (B, text_len, text_dim), zero rows after the tokens.

    ComfyUI pads every prompt to 512 rows; rows of zeros beyond `text_len` are cut, and fewer rows are padded. Where
    tokens stand beyond `text_len`, because prompts were joined with their padding, the padding between is left out.

    Args:
        text_embeds: (B, L, text_dim).
        config: the model's.
        name: what an error calls the prompt.

    Raises:
        ShapeError: the width is another encoder's, or it is not (B, L, text_dim).
        InputError: there are more than `text_len` tokens.
    """
    if text_embeds.ndim != 3:
        raise ShapeError(f"text_embeds have shape {tuple(text_embeds.shape)}; needed is (B, L, {config.text_dim}).")
    if text_embeds.shape[2] != config.text_dim:
        raise ShapeError(
            f"This text encoder (CLIP) gives {text_embeds.shape[2]} channels, the model wants {config.text_dim}: use "
            f"{_text_encoder_name(config)}."
        )
    if bool(text_embeds[:, config.text_len :].any()):
        text_embeds = text_embeds[:, text_embeds.any(-1).any(0)]
        count = text_embeds.shape[1]
        if count > config.text_len:
            raise InputError(
                f"{name} has {count} tokens, {count - config.text_len} more than the {config.text_len} that the model "
                "reads; shorten it."
            )
    kept = text_embeds[:, : config.text_len]
    return F.pad(kept, (0, 0, 0, config.text_len - kept.shape[1]))


def _text_encoder_name(config: ContextAnyoneConfig) -> str:
    if config.text_dim != 4096:
        return "the text encoder that belongs to it"
    return (
        "ComfyUI's own umt5_xxl, such as umt5_xxl_fp8_e4m3fn_scaled.safetensors. A umT5 with Wan's names, such as "
        "umt5-xxl-enc-bf16, is taken for another encoder by Load CLIP"
    )
