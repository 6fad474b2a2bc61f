"""Which frames and which part of them a clip uses: resampling to 16 a second, cropping, cut-outs, masks on latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from contextanyone_core.media.video_io import FPS

Box = tuple[int, int, int, int]


def on_white(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with white wherever its mask (H, W) is 0; in between mixed."""
    share = mask.astype(np.float32)[..., None] / 255.0
    return np.asarray(np.round(picture * share + 255.0 * (1.0 - share)), np.uint8)


def resample(times: Sequence[float], num_frames: int) -> list[int]:
    """For each of `num_frames` moments at 16 a second from the first frame on, the index of the nearest frame.

    Of two frames equally near the earlier is taken. At exactly 16 a second these are the frames themselves.

    Args:
        times: seconds of the source's frames, increasing.
        num_frames: at most `frames_available(times)`.
    """
    wanted = times[0] + np.arange(num_frames) / FPS
    source = np.asarray(times, np.float64)
    after = np.searchsorted(source, wanted - 1e-6).clip(1, max(1, len(source) - 1))
    before = after - 1
    if len(source) == 1:
        return [0] * num_frames
    nearer = np.abs(source[after] - wanted) < np.abs(source[before] - wanted) - 1e-6
    return [int(index) for index in np.where(nearer, after, before)]


@dataclass(frozen=True)
class Placement:
    """How a frame fills a bucket: cut to `box` (x0, y0, x1, y1), resized to cover `size` = (height, width), and the
    middle of that taken. `scale` is the enlargement, `kept` the share of the box's area that remains."""

    box: Box
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """How much larger a pixel becomes."""
        x0, y0, x1, y1 = self.box
        return max(self.size[0] / (y1 - y0), self.size[1] / (x1 - x0))

    @property
    def kept(self) -> float:
        """Share of the box's area that the bucket shows."""
        x0, y0, x1, y1 = self.box
        return self.size[0] * self.size[1] / (self.scale**2 * (y1 - y0) * (x1 - x0))

    def _covering(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box
        height, width = round((y1 - y0) * self.scale), round((x1 - x0) * self.scale)
        return max(height, self.size[0]), max(width, self.size[1])

    def apply(self, frames: Tensor) -> Tensor:
        """Frames (T, C, H, W) uint8 of the source as float32 (T, C, height, width) in [0, 255]."""
        x0, y0, x1, y1 = self.box
        covering, (height, width) = self._covering(), self.size
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        placed = []
        for frame in frames[:, :, y0:y1, x0:x1]:  # one at a time: a clip of full-size float frames takes gigabytes
            pixels = frame[None].float()
            if pixels.shape[2:] != covering:
                pixels = F.interpolate(pixels, size=covering, mode="bicubic", antialias=True, align_corners=False)
            placed.append(pixels[:, :, top : top + height, left : left + width].clamp(0, 255))
        return torch.cat(placed)

    def move(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2 or 3) of x and y in the source's pixels, in the bucket's; a third value stays as it is."""
        x0, y0, x1, y1 = self.box
        covering = self._covering()
        scale = np.array([covering[1] / (x1 - x0), covering[0] / (y1 - y0)])
        margin = np.array([(covering[1] - self.size[1]) // 2, (covering[0] - self.size[0]) // 2])
        moved = points.copy()
        moved[..., :2] = (points[..., :2] - np.array([x0, y0])) * scale - margin
        return moved


def to_images(frames: Tensor) -> Tensor:
    """Frames (T, 3, H, W) in [0, 255] as images (1, 3, T, H, W) in [-1, 1]."""
    return frames.float().transpose(0, 1)[None] / 127.5 - 1.0


def latent_masks(masks: Tensor) -> Tensor:
    """Per-frame masks (T, H, W) from 0 to 255 as the largest share in each latent: (1, t, H/8, W/8) float32 in [0, 1].

    The causal VAE's groups of frames are 0 | 1-4 | 5-8 | ...
    """
    frames = F.avg_pool2d(masks[:, None].float() / 255.0, 8)
    groups = [frames[:1], *(frames[start : start + 4] for start in range(1, len(frames), 4))]
    return torch.stack([group.amax(dim=0) for group in groups], dim=1)


def dilated(mask: Tensor, cells: int) -> Tensor:
    """A mask (B, 1, t, h, w) enlarged by so many latents on all sides, frame by frame."""
    side = 2 * cells + 1
    return F.max_pool3d(mask, (1, side, side), stride=1, padding=(0, cells, cells)) if cells else mask
