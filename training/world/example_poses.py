"""The example poses of the ComfyUI nodes, a dance and a walk: ``python -m training.world.example_poses``.

It writes assets/poses/*.json, POSE_KEYPOINT as ComfyUI's SDPose node gives it: keypoints of the world's own motions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from contextanyone_core.atomic_file import write_text
from contextanyone_core.pose.layouts import to_whole
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.pose.sequence import PoseSequence, sequence_of
from training.world.actions import FRAMES_PER_SECOND, Motion, base_rate, pose_at
from training.world.attributes import Character
from training.world.figure import Skeleton, Stance
from training.world.places import GROUND

FOLDER = Path(__file__).parents[2] / "assets" / "poses"
MOTIONS = {"dance": "dancing", "walk": "walking"}
"""Names of the examples, and the actions of the world that they are."""

_SIDE, _FRAMES = 512, 81  # a square canvas, as the world's; the length of a video at full size
_HEIGHT = 0.74  # of the figure, as a share of the canvas: the middle of the world's
_CHARACTER = Character("light", "black", "short", "green", "plain", "yellow", "none", "average")


def example_poses(name: str) -> PoseSequence:
    """An example at 16 frames per second: one usual body, in the middle, the motion at its usual pace."""
    action = MOTIONS[name]
    motion = Motion(phase=0.0, cycles_per_second=base_rate(action), side=1, amplitude=1.0)
    stance = Stance(0.5 * _SIDE, GROUND * _SIDE, _HEIGHT * _SIDE)
    points = np.ones((_FRAMES, 14, 3))
    for frame in range(_FRAMES):
        points[frame, :, :2] = Skeleton(_CHARACTER, pose_at(action, frame, motion), stance).keypoints()
    return sequence_of(to_whole(points, "body14"), (_SIDE, _SIDE), FRAMES_PER_SECOND)


def main() -> int:
    """Write the files; 0."""
    for name in MOTIONS:
        frames = [json.dumps(frame) for frame in to_json(example_poses(name))]
        write_text(FOLDER / f"{name}.json", "[\n" + ",\n".join(frames) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
