"""The pose reader as a part: trained on spoilt renderings of every motion and every body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from training.evaluation.pose_reader import (
    STRIDE,
    PoseReader,
    PoseReaderConfig,
    load_pose_reader,
    positions,
    read_joints,
    save_pose_reader,
)
from training.evaluation.probe import prepare
from training.files import write_png
from training.parts.base import Metrics, ParameterGroup, PartContext, PartSettings, default_groups
from training.parts.probe_data import Labelled, spoil
from training.randomness import numpy_generator
from training.world import USUAL_LIMBS, draw_character, draw_scene, draw_shot, free_motion, render_clip
from training.world.figure import draw_limbs

_SIGMA = 2.5  # pixels, of the Gaussian around each joint
_FREE_SHARE, _HELD_OUT_SHARE, _LIMBS_SHARE = 0.5, 0.3, 0.7


class Settings(PartSettings):
    """How many frames a batch holds, and the network's sizes."""

    name: Literal["pose_reader"] = "pose_reader"
    frames: int = Field(96, ge=1)
    side: int = Field(128, ge=32, multiple_of=16)
    channels: tuple[int, int, int, int] = (24, 48, 64, 96)


class PoseReaderPart:
    """Cross-entropy of the joints' maps with a small Gaussian around each joint."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings = settings
        self.seed = context.own_seed
        if context.init_from is not None:
            self.reader = load_pose_reader(context.init_from)
            self.reader.requires_grad_(True)
        else:
            self.reader = PoseReader(PoseReaderConfig(settings.side, settings.channels))

    def modules(self) -> dict[str, nn.Module]:
        """The network."""
        return {"pose_reader": self.reader}

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of it; vectors without weight decay."""
        return default_groups(self.modules())

    def batch(self, step: int) -> dict[str, Tensor]:
        """Spoilt renderings (N, side, side, 3) uint8 and their joints (N, 14, 2) in [-1, 1]."""
        rng = numpy_generator(self.seed, step, "renderings")
        drawn = [spoil(_draw(rng, self.settings.side), rng) for _ in range(self.settings.frames)]
        return {
            "frames": torch.from_numpy(np.concatenate([item.frames for item in drawn])),
            "points": torch.from_numpy(np.concatenate([item.points for item in drawn])),
        }

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The mean cross-entropy of the joints of each frame; logged with how far off they are read, in pixels."""
        maps = self.reader(prepare(batch["frames"], self.settings.side))
        pixels = (batch["points"] + 1) * self.settings.side / 2
        loss = -(_targets(pixels, maps.shape[2:]) * maps).sum((2, 3)).mean(1)
        error = (positions(maps.detach()) - pixels).norm(dim=-1).mean(1)
        return loss, {"joints": loss.detach(), "pixels": error}

    def sample(self, step: int, folder: Path) -> None:
        """A sheet of renderings of test characters with the joints as read (red) and as drawn (white)."""
        rng = numpy_generator(self.seed, 0, "sample")
        drawn = [_draw(rng, self.settings.side, test=True) for _ in range(16)]
        read = read_joints(self.reader, torch.from_numpy(np.stack([item.frames for item in drawn])))[:, 0].numpy()
        tiles = [_tile(item, joints) for item, joints in zip(drawn, read, strict=True)]
        sheet = np.concatenate([np.concatenate(tiles[row : row + 8], 1) for row in range(0, 16, 8)], 0)
        write_png(folder / "pose_reader.png", sheet)

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write pose_reader.safetensors."""
        extra = {key: str(value) for key, value in record.items()}
        save_pose_reader(self.reader, folder / "pose_reader.safetensors", extra)


def _draw(rng: np.random.Generator, side: int, *, test: bool = False) -> Labelled:
    """One frame of a random character, body and motion."""
    character, scene = draw_character(rng, test=test), draw_scene(rng)
    limbs = draw_limbs(rng) if rng.random() < _LIMBS_SHARE else USUAL_LIMBS
    free = None
    if rng.random() < _FREE_SHARE:
        free = free_motion(rng, held_out=bool(rng.random() < _HELD_OUT_SHARE))
    shot = replace(draw_shot(scene, rng), limbs=limbs, free=free)
    shot = replace(shot, x=float(rng.uniform(0.36, 0.64)), height=float(rng.uniform(0.66, 0.80)))
    clip = render_clip(character, shot, np.array([float(rng.uniform(0, 33))]), (side, side))
    points = (clip.keypoints * 2 / side - 1).astype(np.float32)
    return Labelled(clip.video, points, character.labels(), scene.labels())


def _targets(pixels: Tensor, size: torch.Size) -> Tensor:
    """Probabilities (B, 14, h, w): a Gaussian around each joint (B, 14, 2), in pixels."""
    height, width = size
    y = STRIDE * (torch.arange(height, device=pixels.device) + 0.5)
    x = STRIDE * (torch.arange(width, device=pixels.device) + 0.5)
    across = (-((x - pixels[..., :1]) ** 2) / (2 * _SIGMA**2)).softmax(-1)
    down = (-((y - pixels[..., 1:]) ** 2) / (2 * _SIGMA**2)).softmax(-1)
    return down[..., :, None] * across[..., None, :]


def _tile(item: Labelled, read: NDArray[np.float32]) -> NDArray[np.uint8]:
    side = item.frames.shape[1]
    picture = cv2.resize(item.frames[0], (2 * side, 2 * side), interpolation=cv2.INTER_LINEAR)
    truth = (item.points[0] + 1) * side
    for points, color in ((truth, (255, 255, 255)), (2 * read, (255, 0, 0))):
        for x, y in points.tolist():
            cv2.circle(picture, (round(x), round(y)), 3, color, 1, cv2.LINE_AA)
    return np.asarray(picture, np.uint8)
