"""Batches for the probe: renderings of train characters, spoilt the way a VAE and a generator spoil pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.evaluation.probe import CLIP_STRIDE
from training.world import draw_character, draw_scene, draw_shot, render_clip

Frames = NDArray[np.uint8]
Points = NDArray[np.float32]


@dataclass(frozen=True)
class Labelled:
    """One clip: frames (T, side, side, 3) uint8, joints (T, 14, 2) with x and y in [-1, 1], and labels.

    The labels index the eight attributes (8,), and action, place and light (3,).
    """

    frames: Frames
    points: Points
    character: tuple[int, ...]
    scene: tuple[int, ...]


def draw_labelled(rng: np.random.Generator, num_frames: int, side: int, *, test: bool = False) -> Labelled:
    """Render a random character in a random scene.

    A clip has every second one of 16 frames a second, from its start on; a single frame is any of the first second.
    """
    character, scene = draw_character(rng, test=test), draw_scene(rng)
    times = np.arange(num_frames, dtype=np.float64) * CLIP_STRIDE
    if num_frames == 1:
        times += float(rng.uniform(0, 16))
    clip = render_clip(character, draw_shot(scene, rng), times, (side, side))
    points = (clip.keypoints * 2 / side - 1).astype(np.float32)
    return Labelled(clip.video, points, character.labels(), scene.labels())


def spoil(item: Labelled, rng: np.random.Generator) -> Labelled:
    """Blur, low resolution, compression, noise, colour error and a small shift; each at random, the same for a clip.

    A third of the clips get no more than a colour error and a shift.
    """
    if rng.random() < 0.8:
        item = _shift(replace(item, frames=_tint(item.frames, rng)), rng)
    if rng.random() < 1 / 3:
        return item
    side = item.frames.shape[1]
    coarse = max(16, int(side * rng.uniform(0.45, 1.0))) if rng.random() < 0.4 else side
    sigma = float(rng.uniform(0.2, 1.4)) if rng.random() < 0.5 else 0.0
    quality = int(rng.integers(25, 90)) if rng.random() < 0.4 else 0
    grain = float(rng.uniform(1, 12)) if rng.random() < 0.5 else 0.0
    frames = np.stack([_spoil_one(frame, rng, coarse, sigma, quality, grain) for frame in item.frames])
    return replace(item, frames=frames)


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


def _shift(item: Labelled, rng: np.random.Generator) -> Labelled:
    height, width = item.frames.shape[1:3]
    reach = height // 16
    down, across = (int(value) for value in rng.integers(-reach, reach + 1, 2))
    padded = np.pad(item.frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    top, left = reach + down, reach + across
    moved = item.points - np.asarray([across * 2 / width, down * 2 / height], np.float32)
    return replace(item, frames=padded[:, top : top + height, left : left + width], points=moved)
