"""Who is named in the prompts of a run, and where they are in its clips: for mask-guided attention in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from contextanyone_core.encoders.text import read_tokenizer
from contextanyone_core.model.regions import Tokens
from contextanyone_core.pose.drawing import STYLES
from contextanyone_core.pose.hull import person_hull
from contextanyone_core.pose.layouts import LAYOUTS, to_whole
from contextanyone_core.pose.sequence import sequence_of
from contextanyone_core.prompts import rows_naming
from training.data.encode import prompt_of
from training.data.manifest import read_manifest
from training.data.settings import DataSettings

_LAYOUT_OF = {points: name for name, points in LAYOUTS.items()}


@dataclass(frozen=True)
class NamedRows:
    """The rows of the prompts' embeddings that name a person.

    Attributes:
        captions: of each row of the manifest, by its id. elsewhere: of each of `DataSettings.elsewhere_prompts`.
    """

    captions: dict[str, Tokens]
    elsewhere: tuple[Tokens, ...]


def named_rows(settings: DataSettings, name: str, class_name: str) -> NamedRows:
    """Find a person's name, and their class behind it, in the prompts of a run.

    Raises:
        InputError: there is no manifest. CheckpointError: the encoders' folder holds no readable tokenizer.
    """
    tokenizer, _ = read_tokenizer(settings.encoders / "text_encoder.safetensors")

    def rows(prompt: str) -> Tokens:
        return rows_naming(tokenizer.split(prompt), name, class_name)

    lines = read_manifest(settings.manifest).of_split(settings.split).lines
    captions = {line.row.id: rows(prompt_of(line.row).video_text) for line in lines}
    return NamedRows(captions, tuple(map(rows, settings.elsewhere_prompts())))


def hull_of(keypoints: Tensor, size: tuple[int, int], style: str) -> Tensor:
    """The share of each latent within the hull of a figure, (1, t, h/8, w/8), as generation takes it from a pose.

    Args:
        keypoints: (T, points, 3) in pixels of the clip. size: (h, w) of the clip. style: of the drawn poses.
    """
    points = keypoints.numpy().astype(np.float64)
    poses = sequence_of(to_whole(points, _LAYOUT_OF[points.shape[1]]), size, 16.0)
    return torch.from_numpy(np.ascontiguousarray(person_hull(poses, STYLES[style])))[None]
