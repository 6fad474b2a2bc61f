"""The probe: a small network, trained on renderings only, that reads who, where and what off generated frames."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Conv1d, Conv2d, GroupNorm, Linear

from contextanyone_core.errors import ShapeError
from training.evaluation.reader_file import load_reader, save_reader
from training.world import ACTIONS, ATTRIBUTES, KEYPOINTS, LIGHTS, PLACES

KIND = "probe"
FRAME_HEADS: dict[str, tuple[str, ...]] = {**ATTRIBUTES, "place": PLACES, "light": LIGHTS}
"""What is recognised in one frame: the eight attributes in their order, then place and light."""

_POINTS = len(KEYPOINTS)

CLIP_STRIDE = 2
"""The action is recognised from every second frame of a clip at 16 frames a second."""


@dataclass(frozen=True)
class ProbeConfig:
    """Input side in pixels, channels of stem and stages, and width of the temporal part that reads the action."""

    side: int = 96
    channels: tuple[int, ...] = (32, 64, 96, 128)
    action_width: int = 64


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm around a shortcut; the first one halves the sides if set."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = GroupNorm(8, channels)
        self.conv2 = Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = GroupNorm(8, channels)
        self.shortcut = Conv2d(channels_in, channels, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) to (B, C, h / stride, w / stride)."""
        inner = F.silu(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        shortcut = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.silu(inner + self.shortcut(shortcut))


class _ActionReader(nn.Module):
    """Reads the action off where the joints of a clip's frames are, and how they move."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frame = Linear(2 * 2 * _POINTS, width)
        self.time1 = Conv1d(width, width, 3, padding=1)
        self.time2 = Conv1d(width, width, 3, padding=1)
        self.classify = Linear(2 * width, len(ACTIONS))

    def forward(self, points: Tensor) -> Tensor:
        """Joint positions (B, T, 14, 2) in [-1, 1] to logits (B, 5)."""
        around_centre = points - points.mean((1, 2), keepdim=True)
        moved = points - points.mean(1, keepdim=True)
        x = F.silu(self.frame(4.0 * torch.cat([around_centre, moved], -1).flatten(2))).transpose(1, 2)
        x = x + F.silu(self.time1(x))
        x = x + F.silu(self.time2(x))
        return cast(Tensor, self.classify(torch.cat([x.mean(-1), x.amax(-1)], 1)))


@dataclass(frozen=True)
class Seen:
    """What the network makes of B frames, before the heads.

    look: (B, 14, h, w) log-probabilities of where each joint is. points: (B, 14, 2) their means, x and y in [-1, 1].
    features: (B, F) features at the joints and of the whole frame.
    """

    look: Tensor
    points: Tensor
    features: Tensor


class Probe(nn.Module):
    """Finds the joints of the person, recognises attributes by the features there, and the action by their motion.

    Frames of any size go in; :func:`prepare` brings them to the network's own side.
    """

    def __init__(self, config: ProbeConfig | None = None) -> None:
        super().__init__()
        self.config = config or ProbeConfig()
        first, *_, last = self.config.channels
        self.stem = Conv2d(3, first, 5, 2, 2)
        steps = zip(pairwise(self.config.channels), (2, 2, 1), strict=True)
        stages = [ResidualBlock(a, b, stride) for (a, b), stride in steps]
        self.stages = nn.Sequential(*stages, ResidualBlock(last, last))
        self.look = Conv2d(last, _POINTS, 1)
        width = last * (_POINTS + 1) + 2 * _POINTS
        self.heads = nn.ModuleDict({name: Linear(width, len(values)) for name, values in FRAME_HEADS.items()})
        self.action = _ActionReader(self.config.action_width)

    def see(self, frames: Tensor) -> Seen:
        """Look at prepared frames (B, 3, side, side)."""
        maps = self.stages(F.silu(self.stem(frames.contiguous(memory_format=torch.channels_last))))
        height, width = maps.shape[2:]
        look = self.look(maps).float().flatten(2).log_softmax(-1)
        weights = look.exp()
        places = torch.einsum("bkp,bcp->bkc", weights.to(maps.dtype), maps.flatten(2))
        points = weights @ _cell_centres(height, width).to(weights)
        whole = maps.mean((2, 3))
        features = torch.cat([places.flatten(1), whole, points.flatten(1).to(maps.dtype)], 1)
        return Seen(look.unflatten(2, (height, width)), points, features)

    def read_frames(self, seen: Seen) -> dict[str, Tensor]:
        """Logits (B, classes) by name: the attributes, place and light."""
        return {name: head(seen.features) for name, head in self.heads.items()}

    def read_action(self, points: Tensor) -> Tensor:
        """Logits (B, 5) of the action from the joints (B, T, 14, 2) of every second frame."""
        return cast(Tensor, self.action(points))


def _cell_centres(height: int, width: int) -> Tensor:
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)


def prepare(frames: Tensor, side: int = 96) -> Tensor:
    """Frames (B, H, W, 3) uint8 of any size as the network's input (B, 3, side, side), float32 in [-1, 1].

    A picture that is not square is padded with grey, so that bodies keep their proportions.

    Raises:
        ShapeError: not (B, H, W, 3) uint8.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ShapeError(f"frames are {tuple(frames.shape)} {frames.dtype}; the probe needs (B, H, W, 3) uint8.")
    images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    height, width = images.shape[2:]
    if height != width:
        down, across = max(width - height, 0), max(height - width, 0)
        images = F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))
    if images.shape[-1] != side:
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return images


@dataclass(frozen=True)
class Reading:
    """What the probe recognised in clips.

    frames: predicted class of each frame by name (attributes, place, light), (B, T) int64.
    action: predicted action of each clip, (B,) int64; None where the clips have one frame.
    points: where the person's joints are, (B, T, 14, 2), x and y in [-1, 1].
    """

    frames: dict[str, Tensor]
    action: Tensor | None
    points: Tensor


@torch.no_grad()
def read_clips(probe: Probe, clips: Tensor, batch_size: int = 128) -> Reading:
    """Read clips (B, T, H, W, 3) uint8; the frames go through the network ``batch_size`` at a time.

    They are read where the network is; what it read is on the CPU.
    """
    count, length = clips.shape[:2]
    device = probe.stem.weight.device
    parts = torch.split(clips.flatten(0, 1), batch_size)
    seen = [probe.see(prepare(part.to(device), probe.config.side)) for part in parts]
    logits = [probe.read_frames(part) for part in seen]
    points = torch.cat([part.points for part in seen]).view(count, length, _POINTS, 2)
    action = None if length == 1 else probe.read_action(points[:, ::CLIP_STRIDE]).argmax(-1).cpu()
    read = {name: torch.cat([part[name].argmax(-1) for part in logits]) for name in FRAME_HEADS}
    return Reading({name: values.view(count, length).cpu() for name, values in read.items()}, action, points.cpu())


def join_readings(readings: list[Reading]) -> Reading:
    """Readings of several batches as one."""
    frames = {name: torch.cat([part.frames[name] for part in readings]) for name in FRAME_HEADS}
    actions = [part.action for part in readings if part.action is not None]
    points = torch.cat([part.points for part in readings])
    return Reading(frames, torch.cat(actions) if actions else None, points)


def save_probe(probe: Probe, path: Path, extra: dict[str, str] | None = None) -> None:
    """Write the probe as one fp16 safetensors file with its config in the header."""
    save_reader(probe, probe.config, path, KIND, extra)


def load_probe(path: Path) -> Probe:
    """Read a file of :func:`save_probe`; float32, evaluation mode.

    Raises:
        CheckpointError: as :func:`load_reader`.
    """
    return load_reader(path, KIND, lambda config: Probe(ProbeConfig(**config)))
