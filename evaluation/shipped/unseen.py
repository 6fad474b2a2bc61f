"""Attribute values that no training pair has: shirt colours between the world's own, and a topknot for a hair style.

The world's renderer draws its own values only. A rendering is linear in the shirt's colour as long as the pattern's
mark stays the same, so any other colour is computed from renderings in four of its own; the topknot is drawn behind the
person. No classifier knows these values: a clip shows one if its crops resemble the rendering with it more than the
renderings with every value that training has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.world import KEYPOINTS, Character, Clip, Shot, render_clip
from training.world.attributes import COLORS, HAIR_COLORS
from training.world.canvas import Canvas
from training.world.render import _LIGHT_ON_PERSON

Color = tuple[int, int, int]
Frames = NDArray[np.uint8]
Points = NDArray[np.float32]

UNSEEN_COLORS: Mapping[str, Color] = {"grey": (142, 142, 146), "lime": (166, 226, 66), "brown": (122, 78, 40)}
"""Shirt colours that the world does not have, RGB; each as far from its own as these from one another."""
TOPKNOT = "topknot"

_DARK, _BRIGHT = "black", ("red", "teal", "blue")
"""For each channel a colour that is bright in it; all four have the light mark in their patterns."""
_SIDE = 16  # pixels of a crop that is compared


def with_shirt(
    character: Character, color: Color, shot: Shot, frames: NDArray[np.float64], size: tuple[int, int]
) -> Clip:
    """A clip of a character in a shirt of any colour."""
    dark = render_clip(replace(character, shirt_color=_DARK), shot, frames, size)
    video = dark.video.astype(np.float64)
    for channel, name in enumerate(_BRIGHT):
        bright = render_clip(replace(character, shirt_color=name), shot, frames, size).video[..., channel]
        low, high = COLORS[_DARK][channel], COLORS[name][channel]
        share = (color[channel] - low) / (high - low)
        video[..., channel] += share * (bright - video[..., channel])
    return replace(dark, video=np.asarray(np.clip(video.round(), 0, 255), np.uint8))


def with_topknot(character: Character, shot: Shot, frames: NDArray[np.float64], size: tuple[int, int]) -> Clip:
    """A clip of a character with short hair and a topknot, a style that the world does not have."""
    clip = render_clip(replace(character, hair_style="short"), shot, frames, size)
    unit = shot.height * min(size)
    light = np.asarray(_LIGHT_ON_PERSON[shot.scene.light])
    video, masks = clip.video.copy(), clip.masks.copy()
    for index, points in enumerate(clip.keypoints):
        x, y = points[KEYPOINTS.index("head")].tolist()
        canvas = Canvas(*size)
        canvas.subject = True
        canvas.ellipse((x, y - 0.21 * unit), (0.085 * unit, 0.08 * unit), HAIR_COLORS[character.hair_color])
        knot = canvas.mask().astype(np.float64) / 255
        share = (knot * (1 - clip.masks[index] / 255))[..., None]
        color = np.asarray(HAIR_COLORS[character.hair_color]) * light
        video[index] = np.round(clip.video[index] * (1 - share) + color * share)
        masks[index] = np.maximum(clip.masks[index], np.round(255 * share[..., 0]).astype(np.uint8))
    return replace(clip, video=video, masks=masks)


def head_crop(video: Frames, points: Points, unit: float) -> NDArray[np.float32]:
    """The mean head of a clip, (16, 16, 3) in Lab: from the topknot's end to below long hair.

    Args:
        video: (T, H, W, 3). points: the joints (T, 14, 2) in pixels. unit: the figure's height in pixels.
    """
    centres = points[:, KEYPOINTS.index("head")] + np.asarray([0, -0.03 * unit], np.float32)
    return _mean_crop(video, centres, 0.27 * unit)


def torso_crop(video: Frames, points: Points, unit: float) -> NDArray[np.float32]:
    """The mean torso of a clip, (16, 16, 3) in Lab, as `head_crop`; between neck and hips, narrower than any body."""
    hips = np.asarray((points[:, KEYPOINTS.index("left_hip")] + points[:, KEYPOINTS.index("right_hip")]) / 2)
    centres = np.asarray((points[:, KEYPOINTS.index("neck")] + hips) / 2, np.float32)
    return _mean_crop(video, centres, 0.06 * unit)


def nearest(crop: NDArray[np.float32], candidates: Mapping[str, NDArray[np.float32]]) -> str:
    """The candidate with the smallest mean distance in Lab."""
    return min(candidates, key=lambda name: float(np.linalg.norm(crop - candidates[name], axis=-1).mean()))


def pixels(points: Points, size: tuple[int, int]) -> Points:
    """Joints (T, 14, 2) from [-1, 1] of a square picture to pixels of (height, width)."""
    height, width = size
    return np.asarray((points + 1) / 2 * np.asarray([width, height]), np.float32)


def _mean_crop(video: Frames, centres: Points, half: float) -> NDArray[np.float32]:
    crops = []
    for frame, (x, y) in zip(video, centres, strict=True):
        scale = _SIDE / (2 * half)
        move = np.asarray([[scale, 0, -scale * (x - half)], [0, scale, -scale * (y - half)]], np.float32)
        crop = cv2.warpAffine(
            frame.astype(np.float32) / 255,
            move,
            (_SIDE, _SIDE),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        crops.append(cv2.cvtColor(crop, cv2.COLOR_RGB2Lab))
    return np.asarray(np.mean(crops, axis=0), np.float32)
