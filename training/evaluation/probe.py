"""The probe: a small network, trained on renderings only, that reads who, where and what off generated frames."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contextanyone_core.checkpoint import load_tensors, read_header, save_safetensors
from contextanyone_core.errors import CheckpointError, ShapeError
from training.world import ACTIONS, ATTRIBUTES, LIGHTS, PLACES

KIND = "probe"
FRAME_HEADS: dict[str, tuple[str, ...]] = {**ATTRIBUTES, "place": PLACES, "light": LIGHTS}
"""What is read off one frame: the eight attributes in their order, then place and light."""

CLIP_STRIDE = 2
"""The action is read off every second frame of a clip at 16 frames a second."""


@dataclass(frozen=True)
class ProbeConfig:
    """Input side in pixels, channels of the four stages, and width of the temporal part that reads the action."""

    side: int = 96
    channels: tuple[int, ...] = (32, 64, 96, 128)
    action_width: int = 64


class _Block(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm around a shortcut; the first one halves the sides where asked."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) to (B, C, h / stride, w / stride)."""
        inner = F.silu(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        shortcut = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.silu(inner + self.shortcut(shortcut))


class _Reader(nn.Module):
    """One head: looks where it has learned to look (softmax over positions), then classifies."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(channels, 2, 1)
        self.classify = nn.Linear(2 * channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to logits (B, classes)."""
        weights = self.look(features).flatten(2).float().softmax(-1).to(features.dtype)
        seen = torch.einsum("bkp,bcp->bkc", weights, features.flatten(2))
        return cast(Tensor, self.classify(seen.flatten(1)))


class _ActionReader(nn.Module):
    """Reads the action off the features of a clip's frames: what each frame shows, and how it changes."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 16, 1)
        self.frame = nn.Linear(16 * 36, width)
        self.time1 = nn.Conv1d(width, width, 3, padding=1)
        self.time2 = nn.Conv1d(width, width, 3, padding=1)
        self.classify = nn.Linear(2 * width, len(ACTIONS))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, C, h, w) to logits (B, 5)."""
        count, frames = features.shape[:2]
        grid = F.adaptive_avg_pool2d(self.reduce(features.flatten(0, 1)), 6)
        x = F.silu(self.frame(grid.flatten(1))).view(count, frames, -1).transpose(1, 2)
        x = x + F.silu(self.time1(x))
        x = x + F.silu(self.time2(x))
        return cast(Tensor, self.classify(torch.cat([x.mean(-1), x.amax(-1)], 1)))


class Probe(nn.Module):
    """Convolutional network with one head per attribute, for place and light, and a temporal one for the action.

    Frames of any size go in; :func:`prepare` brings them to the network's own side.
    """

    def __init__(self, config: ProbeConfig | None = None) -> None:
        super().__init__()
        self.config = config or ProbeConfig()
        first = self.config.channels[0]
        self.stem = nn.Conv2d(3, first, 5, 2, 2)
        stages = [_Block(a, b, 2) for a, b in pairwise((first, *self.config.channels[1:]))]
        self.stages = nn.Sequential(*stages, _Block(self.config.channels[-1], self.config.channels[-1], 1))
        last = self.config.channels[-1]
        self.heads = nn.ModuleDict({name: _Reader(last, len(values)) for name, values in FRAME_HEADS.items()})
        self.action = _ActionReader(last, self.config.action_width)

    def features(self, frames: Tensor) -> Tensor:
        """Feature maps (B, C, h, w) of prepared frames (B, 3, side, side)."""
        frames = frames.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.stages(F.silu(self.stem(frames))))

    def read_frames(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) by name: the attributes, place and light."""
        return {name: head(features) for name, head in self.heads.items()}

    def read_action(self, features: Tensor) -> Tensor:
        """Logits (B, 5) of the action from feature maps (B, T, C, h, w) of every second frame."""
        return cast(Tensor, self.action(features))


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
    """What the probe read off clips.

    frames: predicted class of each frame by name (attributes, place, light), (B, T) int64.
    action: predicted action of each clip, (B,) int64; None where the clips have one frame.
    """

    frames: dict[str, Tensor]
    action: Tensor | None


@torch.no_grad()
def read_clips(probe: Probe, clips: Tensor, batch_size: int = 128) -> Reading:
    """Read clips (B, T, H, W, 3) uint8; the frames go through the network ``batch_size`` at a time."""
    count, length = clips.shape[:2]
    flat = clips.flatten(0, 1)
    maps = [probe.features(prepare(part, probe.config.side)) for part in torch.split(flat, batch_size)]
    features = torch.cat(maps)
    frames = {name: logits.argmax(-1).view(count, length) for name, logits in probe.read_frames(features).items()}
    if length == 1:
        return Reading(frames, None)
    by_clip = features.view(count, length, *features.shape[1:])[:, ::CLIP_STRIDE]
    return Reading(frames, probe.read_action(by_clip).argmax(-1))


def save_probe(probe: Probe, path: Path, extra: dict[str, str] | None = None) -> None:
    """Write the probe as one fp16 safetensors file with its config in the header."""
    tensors = {name: value.detach().to(torch.float16).contiguous() for name, value in probe.state_dict().items()}
    config = json.loads(json.dumps(asdict(probe.config)))
    save_safetensors(path, tensors, kind=KIND, config=config, extra=extra)


def load_probe(path: Path) -> Probe:
    """Read a file of :func:`save_probe`; float32, evaluation mode.

    Raises:
        CheckpointError: the file is damaged, of another kind, or its names are not the probe's.
    """
    header = read_header(path)
    if header.kind != KIND:
        raise CheckpointError(f"{path} is a {header.kind} file; the evaluation needs a {KIND} file.")
    config = ProbeConfig(**{**header.config, "channels": tuple(header.config["channels"])})
    probe = Probe(config)
    try:
        probe.load_state_dict({name: value.float() for name, value in load_tensors(path).items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the probe: {error}") from None
    probe.eval().requires_grad_(False)
    return probe
