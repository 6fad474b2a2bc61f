"""Condition channels: a drawn pose and clean first frames beside the noisy latents (AnimateAnywhere, base model).

The layout is that of Wan2.1-Fun-Control: the patch embedding takes noise | pose | start, as many channels each, all
normalised latents; zeros mean that the condition is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, ShapeError
from .regions import Regions, TextGuide

NO_CHANNELS = (
    "A pose or a start frame is given, and this model has no condition channels (condition_dim is 0); leave them out, "
    "or use a model made by contextanyone init from Wan2.1-Fun-1.3B-Control or with --condition, or a pose LoRA."
)


@dataclass(frozen=True)
class VideoCondition:
    """Conditions of the video stream beside the noisy latents and the text; None is an absent condition.

    Attributes:
        pose: normalised latents (B, in_dim, T, h, w) of the drawn poses, as large as the video's.
        start: normalised latents (B, in_dim, n, h, w) of the clean first n latent frames, 1 <= n <= T.
        regions: where the person named in the prompt is, for mask-guided attention.
        textless_frames: how many of the last latent frames skip the text cross-attention, as RefAlign's references do.
    """

    pose: Tensor | None = None
    start: Tensor | None = None
    regions: Regions | None = None
    textless_frames: int = 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VideoCondition:
        """The same on another device or in another dtype."""
        parts: dict[str, Any] = {"regions": self.regions, **dict(self._parts())}
        moved = {name: part.to(device=device, dtype=dtype) for name, part in parts.items() if part is not None}
        return replace(self, **moved)

    def _parts(self) -> Sequence[tuple[str, Tensor | None]]:
        return ("pose", self.pose), ("start", self.start)

    def guide(self, latents: Tensor, patch: tuple[int, int, int], text_len: int) -> TextGuide | None:
        """The regions in the form that the text cross-attention needs (`Regions.guide`); None without any."""
        return None if self.regions is None else self.regions.guide(latents, patch, text_len)

    def concatenated(self, latents: Tensor, channels: int) -> Tensor:
        """Noisy latents | pose | start: (B, `channels`, T, h, w); the noisy latents alone if both are absent.

        A condition of batch 1 serves any batch.

        Args:
            latents: (B, in_dim, T, h, w).
            channels: of the patch embedding, in_dim or 3 * in_dim.

        Raises:
            InputError: a condition is given, and the model has no channels for it.
            ShapeError: a condition has another size or batch than the latents.
        """
        if self.pose is None and self.start is None:
            return latents
        if channels == latents.shape[1]:
            raise InputError(NO_CHANNELS)
        return torch.cat([latents, *(_channels(name, part, latents) for name, part in self._parts())], dim=1)


class PatchEmbedding(nn.Conv3d):
    """Wan's patch embedding, which also accepts its first channels only: the others then count as zeros.

    So a model with condition channels computes, without conditions, the same convolution as one without them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) -> patches (B, dim, t, i, j); C is at most the channels of the weight."""
        if x.shape[1] == self.in_channels:
            return super().forward(x)
        return functional.conv3d(x, self.weight[:, : x.shape[1]].contiguous(), self.bias, self.stride)


def resized_patch_weight(weight: Tensor, channels: int) -> Tensor:
    """A patch embedding's weight (dim, C, 1, 2, 2) cut or padded with zeros to `channels` input channels."""
    absent = max(channels - weight.shape[1], 0)
    return functional.pad(weight[:, :channels], (0, 0, 0, 0, 0, 0, 0, absent))


def pad_frames(start: Tensor, frames: int) -> Tensor:
    """Latents (B, C, n, h, w) of a start padded with zeros to `frames`: (B, C, max(n, frames), h, w)."""
    return functional.pad(start, (0, 0, 0, 0, 0, max(0, frames - start.shape[2])))


def present_frames(start: Tensor) -> Tensor:
    """Which frames of a start (B, C, n, h, w) are not all zeros, which means absent: bool (B, 1, n, 1, 1)."""
    return (start != 0).any(dim=4, keepdim=True).any(dim=3, keepdim=True).any(dim=1, keepdim=True)


def pad_channels(x: Tensor, channels: int) -> Tensor:
    """Latents (B, C, T, h, w) padded with zeros to `channels`, for a host's own layer, which needs all of them."""
    missing = channels - x.shape[1]
    return functional.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing > 0 else x


def _channels(name: str, part: Tensor | None, latents: Tensor) -> Tensor:
    """One condition in the shape of the latents; zeros where it is absent."""
    if part is None:
        return torch.zeros_like(latents)
    frames, size = latents.shape[2], (latents.shape[1], *latents.shape[3:])
    fits = part.ndim == 5 and (part.shape[1], *part.shape[3:]) == size
    lengths = range(1, frames + 1) if name == "start" else [frames]
    if not fits or part.shape[2] not in lengths:
        needed = f"1 to {frames}" if name == "start" else str(frames)
        raise ShapeError(
            f"The {name} latents have shape {tuple(part.shape)}; needed is (batch, {size[0]}, {needed}, {size[1]}, "
            f"{size[2]}), the size of the video's latents."
        )
    if len(part) not in (1, len(latents)):
        raise ShapeError(
            f"The {name} latents are a batch of {len(part)}, the video's of {len(latents)}; needed is {len(latents)}, "
            "or 1."
        )
    part = part.to(latents.dtype).expand(len(latents), -1, -1, -1, -1)
    return pad_frames(part, frames)
