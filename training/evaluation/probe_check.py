"""Accuracy of the probe itself: on renderings of test characters that it was not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from training.evaluation.accuracy import attributes_right, scene_accuracy
from training.evaluation.probe import Probe, join_readings, read_clips
from training.world import ATTRIBUTES, LIGHTS, draw_character, draw_scene, draw_shot, render_clip

_CLIP_FRAMES = 17
_BATCH = 16


def check_probe(probe: Probe, seed: int, frames: int, size: int) -> dict[str, Any]:
    """Accuracy on about ``frames`` frames in clips of test characters: mean, per attribute, by light, the scene."""
    rng = np.random.default_rng([seed, 3])
    times = np.arange(_CLIP_FRAMES, dtype=np.float64)
    readings, labels, scenes = [], [], []
    for start in range(0, -(-frames // _CLIP_FRAMES), _BATCH):
        clips = []
        for _ in range(min(_BATCH, -(-frames // _CLIP_FRAMES) - start)):
            character, scene = draw_character(rng, test=True), draw_scene(rng)
            clips.append(render_clip(character, draw_shot(scene, rng), times, (size, size)).video)
            labels.append(character.labels())
            scenes.append(scene.labels())
        readings.append(read_clips(probe, torch.from_numpy(np.stack(clips))))
    reading, scene_labels = join_readings(readings), np.asarray(scenes, np.int64)
    right = attributes_right(reading, np.asarray(labels, np.int64))
    light = {name: right[scene_labels[:, 2] == index] for index, name in enumerate(LIGHTS)}
    return {
        "accuracy": float(right.mean()),
        "per_attribute": dict(zip(ATTRIBUTES, right.mean((0, 1)).tolist(), strict=True)),
        "by_light": {name: float(part.mean()) for name, part in light.items() if part.size},
        "scene": scene_accuracy(reading, scene_labels),
        "n_frames": int(right.shape[0] * right.shape[1]),
        "n_characters": len(right),
    }
