"""Motions that no word names: smooth random joint angles, of which one family is held out from training."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sin

import numpy as np

from training.world.actions import FRAMES_PER_SECOND, Pose
from training.world.attributes import Character
from training.world.figure import Skeleton, Stance

_AVERAGE = Character("light", "black", "short", "green", "plain", "yellow", "none", "average")
_FRAMES = 17  # the moments at which a motion is judged
_RAISED_SHARE = 0.3  # of these moments, both wrists above the head: held out

# Mean and largest swing of every angle, in radians, and of the offsets, in figure heights.
_RANGES: dict[str, tuple[tuple[float, float], float]] = {
    "arm_left": ((0.2, 2.7), 0.9),
    "forearm_left": ((-0.4, 1.0), 0.8),
    "arm_right": ((0.2, 2.7), 0.9),
    "forearm_right": ((-0.4, 1.0), 0.8),
    "leg_left": ((0.05, 0.35), 0.35),
    "shin_left": ((-0.2, 0.1), 0.25),
    "leg_right": ((0.05, 0.35), 0.35),
    "shin_right": ((-0.2, 0.1), 0.25),
    "x": ((-0.06, 0.06), 0.05),
    "lean": ((-0.08, 0.08), 0.10),
    "crouch": ((0.0, 0.4), 0.3),
}


@dataclass(frozen=True)
class FreeMotion:
    """One or two slow sines for every joint: `waves[name]` is mean, then (swing, cycles per second, phase) of each."""

    waves: dict[str, tuple[float, tuple[tuple[float, float, float], ...]]]

    def pose_at(self, frame: float) -> Pose:
        """The pose at a frame number (16 frames a second)."""
        seconds = frame / FRAMES_PER_SECOND
        at = {
            name: mean + sum(swing * sin(2 * pi * (rate * seconds + phase)) for swing, rate, phase in waves)
            for name, (mean, waves) in self.waves.items()
        }
        return Pose(
            arm_left=(at["arm_left"], at["arm_left"] + at["forearm_left"]),
            arm_right=(at["arm_right"], at["arm_right"] + at["forearm_right"]),
            leg_left=(at["leg_left"], at["leg_left"] + at["shin_left"]),
            leg_right=(at["leg_right"], at["leg_right"] + at["shin_right"]),
            x=at["x"],
            lean=at["lean"],
            crouch=min(max(at["crouch"], 0.0), 1.0),
        )

    @property
    def is_held_out(self) -> bool:
        """Whether both wrists are above the head for a good part of a second: no motion of training does that."""
        return _raised_share(self) >= _RAISED_SHARE


def free_motion(rng: np.random.Generator, *, held_out: bool = False) -> FreeMotion:
    """A random motion. One of training never has both wrists above the head; a held-out one often has."""
    while True:
        motion = FreeMotion(
            {name: _waves(rng, *limits, raised=held_out and name[:3] == "arm") for name, limits in _RANGES.items()}
        )
        share = _raised_share(motion)
        if share >= _RAISED_SHARE if held_out else share == 0:
            return motion


def _waves(
    rng: np.random.Generator, mean: tuple[float, float], swing: float, *, raised: bool
) -> tuple[float, tuple[tuple[float, float, float], ...]]:
    low, high = (2.2, 2.9) if raised else mean
    count = 1 + int(rng.integers(2))
    waves = tuple(
        (swing * float(rng.uniform(0.3, 1.0)) / count, float(rng.uniform(0.3, 1.4)), float(rng.random()))
        for _ in range(count)
    )
    return float(rng.uniform(low, high)), waves


def _raised_share(motion: FreeMotion) -> float:
    skeletons = [Skeleton(_AVERAGE, motion.pose_at(frame), Stance(0.0, 0.0, 1.0)) for frame in range(_FRAMES)]
    above = [
        all(skeleton.joints[f"{side}_wrist"][1] < skeleton.head[1] for side in ("left", "right"))
        for skeleton in skeletons
    ]
    return float(np.mean(above))
