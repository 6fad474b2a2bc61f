"""How much a person moves: optical flow where the person is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

_MARGIN = 0.08  # of the picture's side, around the joints: hair, hands and shoes
_FLOW = {"pyr_scale": 0.5, "levels": 3, "winsize": 9, "iterations": 3, "poly_n": 5, "poly_sigma": 1.1, "flags": 0}


def mean_flow(frames: Frames, points: NDArray[np.float32]) -> float:
    """Mean length of the optical flow (Farneback) in the box around the person, in pixels per frame.

    Args:
        frames: (T, H, W, 3) uint8.
        points: the joints (T, 14, 2), x and y in [-1, 1], as the probe finds them.
    """
    grey = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames]
    lengths = []
    for index in range(len(frames) - 1):
        flow = cv2.calcOpticalFlowFarneback(grey[index], grey[index + 1], None, **_FLOW)  # type: ignore[call-overload]
        rows, columns = _box(points[index : index + 2], frames.shape[1:3])
        lengths.append(float(np.linalg.norm(flow[rows, columns], axis=-1).mean()))
    return float(np.mean(lengths))


def _box(points: NDArray[np.float32], size: tuple[int, ...]) -> tuple[slice, slice]:
    height, width = size
    margin = _MARGIN * min(size)
    pixels = (points.reshape(-1, 2) + 1) / 2 * np.asarray([width, height], np.float32)
    left, top = np.floor(np.clip(pixels.min(0) - margin, 0, (width - 2, height - 2))).astype(int)
    right, bottom = np.ceil(np.clip(pixels.max(0) + margin, (left + 2, top + 2), (width, height))).astype(int)
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def motion_ratio(generated: list[float], rendered: list[float], actions: list[str]) -> dict[str, object]:
    """Mean flow of generated clips over that of renderings of the same scenes, in all and by action."""
    by_action = {}
    for action in sorted(set(actions)):
        chosen = [index for index, name in enumerate(actions) if name == action]
        by_action[action] = _ratio([generated[i] for i in chosen], [rendered[i] for i in chosen])
    return {"ratio": _ratio(generated, rendered), "by_action": by_action}


def _ratio(generated: list[float], rendered: list[float]) -> float:
    return float(np.mean(generated) / max(float(np.mean(rendered)), 1e-6))
