"""Poses over time: each action is a function from a phase in cycles to joint angles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

FRAMES_PER_SECOND = 16
_LAP_SECONDS = 1.125  # how long a walker goes one way


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians and offsets in figure heights.

    Angles are measured from straight down; positive turns outwards (away from the body) for arms and legs, so that
    the same number on both sides is a symmetric pose. ``x`` moves to the right, ``lift`` up; ``lean`` tilts the torso
    to the right; ``crouch`` in [0, 1] shortens the legs by bending the knees; ``seated`` draws the sitting figure.
    """

    arm_left: tuple[float, float] = (0.25, 0.15)
    arm_right: tuple[float, float] = (0.25, 0.15)
    leg_left: tuple[float, float] = (0.10, 0.06)
    leg_right: tuple[float, float] = (0.10, 0.06)
    x: float = 0.0
    lift: float = 0.0
    lean: float = 0.0
    crouch: float = 0.0
    seated: bool = False


@dataclass(frozen=True)
class Motion:
    """How this clip performs its action: where in the cycle it starts, how fast, and towards which side (-1 or 1)."""

    phase: float
    cycles_per_second: float
    side: int
    amplitude: float


def _walking(phase: float, seconds: float, motion: Motion) -> Pose:
    lap, along = divmod(seconds, _LAP_SECONDS)  # to and fro, or a long clip would lose the walker
    back = lap % 2 == 1
    way = _LAP_SECONDS - along if back else along
    swing = 0.48 * motion.amplitude * sin(2 * pi * phase)
    return Pose(
        arm_left=(0.12 + swing, 0.12 + 1.2 * swing),
        arm_right=(0.12 + swing, 0.12 + 1.2 * swing),
        leg_left=(0.04 - swing, 0.02 - 0.8 * swing),
        leg_right=(0.04 - swing, 0.02 - 0.8 * swing),
        x=motion.side * 0.30 * (way - 0.5),
        lift=0.018 * abs(cos(2 * pi * phase)),
        lean=0.05 * (-motion.side if back else motion.side),
    )


def _waving(phase: float, _seconds: float, motion: Motion) -> Pose:
    wave = 0.50 * motion.amplitude * sin(2 * pi * phase)
    raised, resting = (2.15 + 0.15 * wave, 2.95 + wave), (0.22, 0.12)
    left, right = (raised, resting) if motion.side < 0 else (resting, raised)
    return Pose(arm_left=left, arm_right=right, lean=0.03 * motion.side * wave)


def _jumping(phase: float, _seconds: float, motion: Motion) -> Pose:
    height = sin(2 * pi * phase)
    air, squat = max(height, 0.0), max(-height, 0.0)
    spread = 0.35 + 1.6 * air
    return Pose(
        arm_left=(spread, spread + 0.2),
        arm_right=(spread, spread + 0.2),
        leg_left=(0.10 + 0.25 * air, 0.06 + 0.20 * air),
        leg_right=(0.10 + 0.25 * air, 0.06 + 0.20 * air),
        lift=0.17 * motion.amplitude * air,
        crouch=0.8 * squat,
    )


def _dancing(phase: float, _seconds: float, motion: Motion) -> Pose:
    sway = motion.side * motion.amplitude * sin(2 * pi * phase)
    return Pose(
        arm_left=(1.45 - 0.75 * sway, 1.95 - 1.05 * sway),
        arm_right=(1.45 + 0.75 * sway, 1.95 + 1.05 * sway),
        leg_left=(0.20 - 0.16 * sway, 0.06),
        leg_right=(0.20 + 0.16 * sway, 0.06),
        x=0.07 * sway,
        lean=0.16 * sway,
        crouch=0.30 * (0.5 + 0.5 * cos(4 * pi * phase)),
    )


def _sitting(phase: float, _seconds: float, motion: Motion) -> Pose:
    kick = 0.40 * motion.amplitude * sin(2 * pi * phase)
    return Pose(
        arm_left=(0.34, -0.28),
        arm_right=(0.34, -0.28),
        leg_left=(0.0, kick),
        leg_right=(0.0, -kick),
        lean=0.05 * sin(2 * pi * phase),
        seated=True,
    )


_POSES: dict[str, tuple[float, Callable[[float, float, Motion], Pose]]] = {
    "walking": (1.0, _walking),
    "waving": (1.4, _waving),
    "jumping": (1.0, _jumping),
    "dancing": (1.0, _dancing),
    "sitting": (0.9, _sitting),
}


def base_rate(action: str) -> float:
    """Cycles per second of an action at its usual pace."""
    return _POSES[action][0]


def pose_at(action: str, frame: float, motion: Motion) -> Pose:
    """The pose of ``action`` at a frame number (16 frames a second)."""
    seconds = frame / FRAMES_PER_SECOND
    return _POSES[action][1](motion.phase + motion.cycles_per_second * seconds, seconds, motion)
