"""The character world as a manifest: what the renderer draws, written as files that any data of this contract has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from contextanyone_core.errors import InputError
from contextanyone_core.media.video_io import FPS, write_clip
from training.data.manifest import ManifestRow, Split, write_manifest
from training.files import write_png, write_tensors
from training.world import TEST_SEED_START, WorldSample, random_frame, sample

_LICENSE = "Apache-2.0"


@dataclass(frozen=True)
class WorldSettings:
    """How many pairs, of how many frames, at which size (height, width), from which seed on.

    Raises:
        InputError: a number that cannot be met.
    """

    count: int
    num_frames: int
    size: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        for name, value, least in (
            ("count", self.count, 1),
            ("num_frames", self.num_frames, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}.")
        for side in self.size:
            if side < 16 or side % 2:
                raise InputError(f"size has a side of {side} pixels; it must be even and at least 16.")


def write_world(folder: Path, settings: WorldSettings) -> Path:
    """Write pairs and, last, their manifest: clips as .mp4 (stills as .png), everything else without loss.

    Returns:
        The path of `manifest.jsonl`.

    Raises:
        InputError: the folder is not empty, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: choose another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
    numbers = tqdm(range(settings.count), desc="writing pairs", unit="pair", disable=None)
    write_manifest(folder / "manifest.jsonl", [_write_pair(folder, settings, settings.seed + n) for n in numbers])
    return folder / "manifest.jsonl"


def _write_pair(folder: Path, settings: WorldSettings, seed: int) -> ManifestRow:
    single = settings.num_frames == 1
    pair = random_frame(seed, settings.size) if single else sample(seed, settings.num_frames, settings.size)
    name = f"{seed:08d}"
    place = folder / name
    place.mkdir()
    write_png(place / "reference.png", pair.reference)
    write_png(place / "reference_mask.png", pair.reference_mask)
    if single:
        write_png(place / "video.png", pair.video[0])
    else:
        write_clip(place / "video.mp4", pair.video, {})
    (place / "mask").mkdir()
    for index, mask in enumerate(pair.masks):
        write_png(place / "mask" / f"{index:04d}.png", mask)
    height, width = settings.size
    said = {"layout": "body14", "width": str(width), "height": str(height), "fps": str(FPS)}
    write_tensors(place / "pose.safetensors", {"keypoints": _scored(pair.keypoints)}, said)
    return _row(name, "video.png" if single else "video.mp4", pair, "test" if seed >= TEST_SEED_START else "train")


def _row(name: str, video: str, pair: WorldSample, split: Split) -> ManifestRow:
    return ManifestRow(
        id=name,
        video=f"{name}/{video}",
        width=pair.video.shape[2],
        height=pair.video.shape[1],
        reference=f"{name}/reference.png",
        mask=f"{name}/mask",
        reference_mask=f"{name}/reference_mask.png",
        pose=f"{name}/pose.safetensors",
        prompt_first=pair.first_prompt,
        prompt_later=pair.later_prompt,
        source="character world",
        license=_LICENSE,
        split=split,
    )


def _scored(keypoints: NDArray[np.float32]) -> torch.Tensor:
    """Points (T, K, 2) with the score 1: (T, K, 3)."""
    points = torch.from_numpy(keypoints)
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
