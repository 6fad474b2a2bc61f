"""Batches for the probe: renderings of train characters, spoilt the way a VAE and a generator spoil pictures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.evaluation.probe import CLIP_STRIDE
from training.world import Character, Scene, draw_character, draw_scene, draw_shot, render_clip

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Labelled:
    """Frames (T, H, W, 3) uint8 of one clip with its attribute indices (8,) and action, place and light (3,)."""

    frames: Frames
    character: tuple[int, ...]
    scene: tuple[int, ...]


def draw_labelled(rng: np.random.Generator, num_frames: int, side: int, *, test: bool = False) -> Labelled:
    """Render a random character in a random scene: ``num_frames`` frames, every second one of 16 a second."""
    character, scene = draw_character(rng, test=test), draw_scene(rng)
    frames = render_still_or_clip(rng, character, scene, num_frames, side)
    return Labelled(frames, character.labels(), scene.labels())


def render_still_or_clip(
    rng: np.random.Generator, character: Character, scene: Scene, num_frames: int, side: int
) -> Frames:
    """Frames (num_frames, side, side, 3): a clip from its start on, a single one at any moment of the first second."""
    times = np.arange(num_frames, dtype=np.float64) * CLIP_STRIDE
    if num_frames == 1:
        times += float(rng.uniform(0, 16))
    return render_clip(character, draw_shot(scene, rng), times, (side, side)).video


def spoil(frames: Frames, rng: np.random.Generator) -> Frames:
    """Blur, low resolution, compression, noise, colour error and a small shift; each at random, the same for a clip.

    A third of the clips stay as they are rendered but for the colour error.
    """
    frames = _shift(_tint(frames, rng), rng) if rng.random() < 0.8 else frames
    if rng.random() < 1 / 3:
        return frames
    side = frames.shape[1]
    coarse = max(16, int(side * rng.uniform(0.45, 1.0))) if rng.random() < 0.4 else side
    sigma = float(rng.uniform(0.2, 1.4)) if rng.random() < 0.5 else 0.0
    quality = int(rng.integers(25, 90)) if rng.random() < 0.4 else 0
    grain = float(rng.uniform(1, 12)) if rng.random() < 0.5 else 0.0
    return np.stack([_spoil_one(frame, rng, coarse, sigma, quality, grain) for frame in frames])


def _spoil_one(
    frame: Frames, rng: np.random.Generator, coarse: int, sigma: float, quality: int, grain: float
) -> Frames:
    side = frame.shape[0]
    if coarse < side:
        small = cv2.resize(frame, (coarse, coarse), interpolation=cv2.INTER_AREA)
        frame = np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    if sigma:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8)
    if quality:
        _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
        frame = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    if grain:
        noisy = frame + rng.standard_normal(frame.shape, np.float32) * np.float32(grain)
        frame = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
    return frame


def _tint(frames: Frames, rng: np.random.Generator) -> Frames:
    gain = rng.uniform(0.94, 1.06, 3) * rng.uniform(0.96, 1.04)
    offset = rng.uniform(-6, 6, 3)
    levels = np.arange(256, dtype=np.float64)[:, None]
    table = np.clip(np.round(levels * gain + offset), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(frames.reshape(-1, frames.shape[2], 3), table[:, None, :]), np.uint8).reshape(
        frames.shape
    )


def _shift(frames: Frames, rng: np.random.Generator) -> Frames:
    reach = frames.shape[1] // 16
    down, across = (int(value) for value in rng.integers(-reach, reach + 1, 2))
    padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    top, left = reach + down, reach + across
    return padded[:, top : top + height, left : left + width]
