"""The probe as a part: trained on renderings of train characters, judged on renderings of test characters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.evaluation.probe import FRAME_HEADS, Probe, ProbeConfig, load_probe, prepare, read_clips, save_probe
from training.files import write_png
from training.parts.base import Metrics, ParameterGroup, PartContext, PartSettings, default_groups
from training.parts.probe_data import Labelled, draw_labelled, spoil
from training.randomness import numpy_generator
from training.world import ATTRIBUTES

_JOINT_SIGMA = 0.6  # cells of the network's last feature map


class Settings(PartSettings):
    """What a batch holds: `stills` single frames and `clips` clips of `clip_frames` frames, and the network's sizes."""

    name: Literal["probe"] = "probe"
    stills: int = Field(48, ge=1)
    clips: int = Field(8, ge=1)
    clip_frames: int = Field(9, ge=2)
    side: int = Field(96, ge=32)
    channels: tuple[int, int, int, int] = (32, 64, 96, 128)


class ProbePart:
    """Cross-entropy of every head; clips weigh as much as their frames."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings = settings
        self.seed = context.own_seed
        if context.init_from is not None:
            self.probe = load_probe(context.init_from)
            self.probe.requires_grad_(True)
        else:
            self.probe = Probe(ProbeConfig(settings.side, settings.channels))

    def modules(self) -> dict[str, nn.Module]:
        """The network."""
        return {"probe": self.probe}

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of it; vectors without weight decay."""
        return default_groups(self.modules())

    def batch(self, step: int) -> dict[str, Tensor]:
        """Spoilt renderings: N = stills + clips * clip_frames frames (N, side, side, 3) uint8, joints (N, 14, 2).

        `labels` (N, 10) index the attributes, place and light; `actions` (clips,) are the clips'.
        """
        settings = self.settings
        rng = numpy_generator(self.seed, step, "renderings")
        lengths = [1] * settings.stills + [settings.clip_frames] * settings.clips
        drawn = [spoil(draw_labelled(rng, length, settings.side), rng) for length in lengths]
        return {
            "frames": torch.from_numpy(np.concatenate([item.frames for item in drawn])),
            "points": torch.from_numpy(np.concatenate([item.points for item in drawn])),
            "labels": torch.from_numpy(np.concatenate([_labels(item) for item in drawn])),
            "actions": torch.tensor([item.scene[0] for item in drawn[settings.stills :]]),
        }

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Sum of the heads' cross-entropies and of the joints' one per frame, plus the mean one of the action."""
        settings = self.settings
        seen = self.probe.see(prepare(batch["frames"], settings.side))
        losses: Metrics = {
            name: F.cross_entropy(logits.float(), batch["labels"][:, index], reduction="none", label_smoothing=0.02)
            for index, (name, logits) in enumerate(self.probe.read_frames(seen).items())
        }
        losses["joints"] = _joint_loss(seen.look, batch["points"])
        of_clips = seen.points[settings.stills :].view(settings.clips, settings.clip_frames, -1, 2)
        losses["action"] = F.cross_entropy(self.probe.read_action(of_clips).float(), batch["actions"])
        total = torch.zeros(len(batch["frames"]), device=seen.points.device)
        for value in losses.values():
            total = total + value
        return total, losses

    def sample(self, step: int, folder: Path) -> None:
        """A sheet of test renderings, the misread attributes written under each."""
        rng = numpy_generator(self.seed, 0, "sample")
        drawn = [draw_labelled(rng, 1, 128, test=True) for _ in range(32)]
        read = read_clips(self.probe, torch.from_numpy(np.stack([item.frames for item in drawn]))).frames
        tiles = [
            _tile(item, {name: int(read[name][index, 0]) for name in ATTRIBUTES}) for index, item in enumerate(drawn)
        ]
        sheet = np.concatenate([np.concatenate(tiles[row : row + 8], 1) for row in range(0, 32, 8)], 0)
        write_png(folder / "probe.png", sheet)

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write probe.safetensors."""
        save_probe(self.probe, folder / "probe.safetensors", {key: str(value) for key, value in record.items()})


def _joint_loss(look: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy (B,) of (B, 14, h, w) log-probabilities with a small Gaussian around each joint (B, 14, 2)."""
    height, width = look.shape[2:]
    y = (torch.arange(height, device=look.device) + 0.5) * 2 / height - 1
    x = (torch.arange(width, device=look.device) + 0.5) * 2 / width - 1
    across = (-(((x - points[..., :1]) * width / 2) ** 2) / (2 * _JOINT_SIGMA**2)).softmax(-1)
    down = (-(((y - points[..., 1:]) * height / 2) ** 2) / (2 * _JOINT_SIGMA**2)).softmax(-1)
    target = down[..., :, None] * across[..., None, :]
    return -(target * look).sum((2, 3)).mean(1)


def _labels(item: Labelled) -> np.ndarray[Any, np.dtype[np.int64]]:
    row = np.asarray([*item.character, *item.scene[1:]], np.int64)
    return np.repeat(row[None], len(item.frames), 0)


def _tile(item: Labelled, read: dict[str, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    picture = cv2.copyMakeBorder(item.frames[0], 0, 32, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    pairs = zip(ATTRIBUTES, item.character, strict=True)
    wrong = [f"{name}: {FRAME_HEADS[name][read[name]]}" for name, label in pairs if read[name] != label]
    for line, text in enumerate(wrong[:3]):
        cv2.putText(picture, text, (2, 138 + 10 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (200, 0, 0), 1, cv2.LINE_AA)
    return np.asarray(picture, np.uint8)
