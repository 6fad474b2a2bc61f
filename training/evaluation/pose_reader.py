"""The pose reader: a small network, trained on renderings only, that finds the 14 joints in generated frames.

The probe finds joints too, but only well enough to look there (about 4 px at 128 x 128); this one measures poses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Conv2d

from training.evaluation.probe import ResidualBlock, prepare
from training.evaluation.reader_file import load_reader, save_reader
from training.world import KEYPOINTS

KIND = "pose-reader"
STRIDE = 4
"""Pixels of a cell of the joints' maps."""

_AROUND = 2  # cells on each side of a map's mode, over which the position is a mean


@dataclass(frozen=True)
class PoseReaderConfig:
    """Input side in pixels, and channels at 1/2, 1/4, 1/8 and 1/16 of it."""

    side: int = 128
    channels: tuple[int, int, int, int] = (24, 48, 64, 96)


class PoseReader(nn.Module):
    """Maps of 14 joints at a quarter of the picture's side: down to 1/16, and up again with what was there before."""

    def __init__(self, config: PoseReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config or PoseReaderConfig()
        first, second, third, last = self.config.channels
        self.stem = Conv2d(3, first, 5, 2, 2)
        self.quarter = ResidualBlock(first, second, 2)
        self.eighth = ResidualBlock(second, third, 2)
        self.sixteenth = ResidualBlock(third, last, 2)
        self.up_eighth = Conv2d(last, third, 1)
        self.at_eighth = ResidualBlock(third, third)
        self.up_quarter = Conv2d(third, second, 1)
        self.at_quarter = ResidualBlock(second, second)
        self.maps = Conv2d(second, len(KEYPOINTS), 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Prepared frames (B, 3, side, side) in [-1, 1] to log-probabilities (B, 14, side / 4, side / 4)."""
        quarter = self.quarter(F.silu(self.stem(frames.contiguous(memory_format=torch.channels_last))))
        eighth = self.eighth(quarter)
        x = self.sixteenth(eighth)
        x = self.at_eighth(eighth + _twice(self.up_eighth(x)))
        x = self.at_quarter(quarter + _twice(self.up_quarter(x)))
        maps: Tensor = self.maps(x).float()
        return maps.flatten(2).log_softmax(-1).view(maps.shape)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def positions(maps: Tensor) -> Tensor:
    """Joint positions (B, K, 2), x and y in pixels of the reader's side, for log-probabilities (B, K, h, w).

    The mean over the cells around the most probable one: a second, far guess does not pull it away.
    """
    height, width = maps.shape[2:]
    weights = maps.masked_fill(~_near_mode(maps), -torch.inf).flatten(2).softmax(-1).view(maps.shape)
    across = (weights.sum(2) * (torch.arange(width, device=maps.device) + 0.5)).sum(-1)
    down = (weights.sum(3) * (torch.arange(height, device=maps.device) + 0.5)).sum(-1)
    return STRIDE * torch.stack([across, down], -1)


def certainty(maps: Tensor) -> Tensor:
    """How sure the reader is that there is somebody, (B,) from 0 to 1: the joints' mean probability where they are."""
    return maps.exp().mul(_near_mode(maps)).sum((2, 3)).mean(1)


def _near_mode(maps: Tensor) -> Tensor:
    """Which cells are around each map's most probable one, like the maps (B, K, h, w)."""
    height, width = maps.shape[2:]
    best = maps.flatten(2).argmax(-1)
    y, x = best // width, best % width
    rows, columns = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    near_rows, near_columns = ((cells - mode[..., None]).abs() <= _AROUND for cells, mode in ((rows, y), (columns, x)))
    return near_rows[..., :, None] & near_columns[..., None, :]


def read_joints(reader: PoseReader, clips: Tensor, batch_size: int = 64) -> Tensor:
    """Joints (B, T, 14, 2) of clips (B, T, H, W, 3) uint8 with square frames, in the clips' own pixels, on the CPU."""
    return find_joints(reader, clips, batch_size)[0]


@torch.no_grad()
def find_joints(reader: PoseReader, clips: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """The joints of `read_joints`, and (B, T) how sure the reader is that a frame shows somebody, by `certainty`."""
    count, length, side = clips.shape[:3]
    device = reader.stem.weight.device
    places, sure = [], []
    for part in torch.split(clips.flatten(0, 1), batch_size):
        maps = reader(prepare(part.to(device), reader.config.side))
        places.append(positions(maps).cpu())
        sure.append(certainty(maps).cpu())
    joints = torch.cat(places).view(count, length, len(KEYPOINTS), 2) * (side / reader.config.side)
    return joints, torch.cat(sure).view(count, length)


def save_pose_reader(reader: PoseReader, path: Path, extra: dict[str, str] | None = None) -> None:
    """Write the reader as one fp16 safetensors file with its config in the header."""
    save_reader(reader, reader.config, path, KIND, extra)


def load_pose_reader(path: Path) -> PoseReader:
    """Read a file of :func:`save_pose_reader`; float32, evaluation mode.

    Raises:
        CheckpointError: as :func:`load_reader`.
    """
    return load_reader(path, KIND, lambda config: PoseReader(PoseReaderConfig(**config)))
