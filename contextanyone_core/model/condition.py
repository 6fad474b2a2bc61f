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
    """What the video stream alone is given beside the noisy latents and the text; None is an absent condition.

    Attributes:
        pose: normalised latents (B, in_dim, T, h, w) of the drawn poses, as large as the video's.
        start: normalised latents (B, in_dim, n, h, w) of the clean first n latent frames, 1 <= n <= T.
        regions: where the person is whom the prompt names, for mask-guided attention.
        untold_frames: so many last latent frames do not read the text: RefAlign's references.
    """

    pose: Tensor | None = None
    start: Tensor | None = None
    regions: Regions | None = None
    untold_frames: int = 0

    def readers(self, grid: tuple[int, int, int]) -> int | None:
        """How many of the tokens of a grid (frames, rows, columns) read the text, from the first on; None is all."""
        frames, rows, columns = grid
        return (frames - self.untold_frames) * rows * columns if self.untold_frames else None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VideoCondition:
        """The same on another device or in another dtype."""
        parts: dict[str, Any] = {"regions": self.regions, **dict(self._parts())}
        moved = {name: part.to(device=device, dtype=dtype) for name, part in parts.items() if part is not None}
        return replace(self, **moved)

    def _parts(self) -> Sequence[tuple[str, Tensor | None]]:
        return ("pose", self.pose), ("start", self.start)

    def guide(self, latents: Tensor, patch: tuple[int, int, int], text_len: int) -> TextGuide | None:
        """What the text cross-attention needs of the regions (`Regions.guide`); None without any."""
        return None if self.regions is None else self.regions.guide(latents, patch, text_len)

    def beside(self, latents: Tensor, channels: int) -> Tensor:
        """Noise | pose | start: (B, `channels`, T, h, w); the noisy latents themselves with nothing to add.

        A condition of batch 1 serves any batch.

        Args:
            latents: (B, in_dim, T, h, w).
            channels: of the patch embedding, in_dim or 3 * in_dim.

        Raises:
            InputError: a condition is given, and the model has no channels for it.
            ShapeError: a condition is of another size or batch than the latents.
        """
        if self.pose is None and self.start is None:
            return latents
        if channels == latents.shape[1]:
            raise InputError(NO_CHANNELS)
        return torch.cat([latents, *(_filled(name, part, latents) for name, part in self._parts())], dim=1)


class PatchEmbedding(nn.Conv3d):
    """Wan's patch embedding, which may be given its first channels alone: the others then count as zeros.

    Without conditions a widened model so computes the very convolution of the narrow one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) -> patches (B, dim, t, i, j); C is at most the channels of the weight."""
        if x.shape[1] == self.in_channels:
            return super().forward(x)
        return functional.conv3d(x, self.weight[:, : x.shape[1]].contiguous(), self.bias, self.stride)


def resized_patch_weight(weight: Tensor, channels: int) -> Tensor:
    """A patch embedding's weight (dim, C, 1, 2, 2) with so many inputs: further ones zero, and so unused."""
    absent = max(channels - weight.shape[1], 0)
    return functional.pad(weight[:, :channels], (0, 0, 0, 0, 0, 0, 0, absent))


def with_absent_frames(start: Tensor, frames: int) -> Tensor:
    """Latents (B, C, n, h, w) of a start with zeros up to `frames`, for a host that cuts conditions with the video."""
    return functional.pad(start, (0, 0, 0, 0, 0, max(0, frames - start.shape[2])))


def given_frames(start: Tensor) -> Tensor:
    """Which frames of a start (B, C, n, h, w) are there: bool (B, 1, n, 1, 1); zeros mean absent."""
    return (start != 0).any(dim=4, keepdim=True).any(dim=3, keepdim=True).any(dim=1, keepdim=True)


def with_absent_channels(x: Tensor, channels: int) -> Tensor:
    """Latents (B, C, T, h, w) with zeros up to `channels`, for a host's own layer, which needs all of them."""
    absent = channels - x.shape[1]
    return functional.pad(x, (0, 0, 0, 0, 0, 0, 0, absent)) if absent > 0 else x


def _filled(name: str, part: Tensor | None, latents: Tensor) -> Tensor:
    """One condition as large as the latents, zeros where it is absent."""
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
            f"The {name} latents are a batch of {len(part)}, the video's of {len(latents)}; one size, or 1, is needed."
        )
    part = part.to(latents.dtype).expand(len(latents), -1, -1, -1, -1)
    return with_absent_frames(part, frames)
