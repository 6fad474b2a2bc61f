"""The figure: a front-facing little person drawn from joint positions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from training.world.actions import Pose
from training.world.attributes import COLORS, HAIR_COLORS, SKIN_TONES, Character
from training.world.canvas import Canvas, Color, Point

KEYPOINTS: tuple[str, ...] = (
    "head",
    "neck",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_hip",
    "right_knee",
    "right_ankle",
)
"""Names of the 2D keypoints, in order; left and right as seen in the picture."""

_BODY_WIDTH = {"slim": 0.68, "average": 1.0, "broad": 1.42}
_INK: Color = (26, 24, 30)
_SHOE: Color = (64, 46, 40)
_UPPER_ARM, _LOWER_ARM, _UPPER_LEG, _LOWER_LEG = 0.15, 0.15, 0.165, 0.165
_TORSO, _NECK, _HEAD = 0.30, 0.025, 0.145


@dataclass(frozen=True)
class Stance:
    """Where a figure stands: ``x`` and ``ground`` of its feet and its ``height``, all in pixels."""

    x: float
    ground: float
    height: float


@dataclass(frozen=True)
class Limbs:
    """How long a figure's arms, legs and torso are, as shares of the usual length. No attribute and no word of it."""

    arms: float = 1.0
    legs: float = 1.0
    torso: float = 1.0


USUAL_LIMBS = Limbs()


def draw_limbs(rng: np.random.Generator) -> Limbs:
    """Random lengths: a quarter longer or shorter at most for arms and legs, a tenth for the torso."""
    return Limbs(float(rng.uniform(0.75, 1.25)), float(rng.uniform(0.75, 1.25)), float(rng.uniform(0.9, 1.1)))


class Skeleton:
    """Joint positions in pixels of a character in a pose."""

    def __init__(self, character: Character, pose: Pose, stance: Stance, limbs: Limbs = USUAL_LIMBS) -> None:
        self.unit = stance.height
        self.limbs = limbs
        self.breadth = _BODY_WIDTH[character.body_shape]
        upper, lower = _UPPER_LEG * limbs.legs, _LOWER_LEG * limbs.legs
        legs = upper + lower
        if pose.seated:
            hip_height = 0.25 * limbs.legs
        else:
            bend = 1.0 - 0.28 * pose.crouch
            reach = max(upper * cos(a) + lower * cos(b) for a, b in (pose.leg_left, pose.leg_right))
            hip_height = min(legs, reach) * bend + 0.02 + pose.lift
        hip = (stance.x + pose.x * self.unit, stance.ground - hip_height * self.unit)
        self.hip = hip
        self.neck = self._from(hip, np.pi - pose.lean, _TORSO * limbs.torso)
        self.head = self._from(self.neck, np.pi - pose.lean, _NECK + 0.8 * _HEAD)
        shoulder, pelvis = 0.098 * self.breadth, 0.055 * self.breadth
        tilt = (cos(pose.lean), sin(pose.lean))
        self.joints: dict[str, Point] = {"head": self.head, "neck": self.neck}
        for side, sign, arm, leg in (
            ("left", -1, pose.arm_left, pose.leg_left),
            ("right", 1, pose.arm_right, pose.leg_right),
        ):
            self._arm(side, sign, arm, shoulder, tilt)
            self._leg(side, sign, leg, pelvis, pose)

    def _from(self, start: Point, angle: float, length: float) -> Point:
        return start[0] + sin(angle) * length * self.unit, start[1] + cos(angle) * length * self.unit

    def _arm(self, side: str, sign: int, angles: tuple[float, float], shoulder: float, tilt: Point) -> None:
        u = self.unit
        start = (self.neck[0] + sign * shoulder * u * tilt[0], self.neck[1] + (0.035 + sign * shoulder * tilt[1]) * u)
        elbow = self._from(start, sign * angles[0], _UPPER_ARM * self.limbs.arms)
        self.joints[f"{side}_shoulder"] = start
        self.joints[f"{side}_elbow"] = elbow
        self.joints[f"{side}_wrist"] = self._from(elbow, sign * angles[1], _LOWER_ARM * self.limbs.arms)

    def _leg(self, side: str, sign: int, angles: tuple[float, float], pelvis: float, pose: Pose) -> None:
        u = self.unit
        hip = (self.hip[0] + sign * pelvis * u, self.hip[1])
        if pose.seated:  # thighs point at the viewer: foreshortened
            knee = (hip[0] + sign * 0.05 * u, hip[1] + 0.055 * u)
            ankle = self._from(knee, sign * angles[1], _LOWER_LEG * self.limbs.legs)
        else:
            bend = 0.95 * pose.crouch
            knee = self._from(hip, sign * (angles[0] + bend), _UPPER_LEG * self.limbs.legs)
            ankle = self._from(knee, sign * (angles[1] - 0.75 * bend), _LOWER_LEG * self.limbs.legs)
        self.joints[f"{side}_hip"], self.joints[f"{side}_knee"], self.joints[f"{side}_ankle"] = hip, knee, ankle

    def keypoints(self) -> NDArray[np.float32]:
        """The keypoints, (14, 2) float32, x and y in pixels, in the order of :data:`KEYPOINTS`."""
        return np.asarray([self.joints[name] for name in KEYPOINTS], np.float32)


def draw_figure(
    canvas: Canvas, character: Character, pose: Pose, stance: Stance, limbs: Limbs = USUAL_LIMBS
) -> NDArray[np.float32]:
    """Draw one person and return the keypoints, (14, 2) float32 in pixels."""
    skeleton = Skeleton(character, pose, stance, limbs)
    if pose.seated:
        _draw_seat(canvas, skeleton, stance)
    canvas.subject = True
    _draw_hair_behind(canvas, character, skeleton)
    _draw_legs(canvas, character, skeleton)
    _draw_torso(canvas, character, skeleton)
    _draw_arms(canvas, character, skeleton)
    _draw_head(canvas, character, skeleton)
    _draw_accessory(canvas, character, skeleton)
    canvas.subject = False
    return skeleton.keypoints()


def _draw_seat(canvas: Canvas, skeleton: Skeleton, stance: Stance) -> None:
    x, y, u = skeleton.hip[0], skeleton.hip[1], skeleton.unit
    canvas.rectangle(x - 0.2 * u, y + 0.02 * u, x + 0.2 * u, stance.ground, (150, 104, 62))
    canvas.rectangle(x - 0.22 * u, y, x + 0.22 * u, y + 0.045 * u, (186, 136, 84))


def _draw_legs(canvas: Canvas, character: Character, skeleton: Skeleton) -> None:
    color, u = COLORS[character.trousers_color], skeleton.unit
    width = 0.085 * u * (0.55 + 0.45 * skeleton.breadth)
    for side in ("left", "right"):
        hip, knee, ankle = (skeleton.joints[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        canvas.ellipse((ankle[0], ankle[1] + 0.012 * u), (0.055 * u, 0.032 * u), _SHOE)
        canvas.limb(hip, knee, width, color)
        canvas.limb(knee, (ankle[0], ankle[1] - 0.02 * u), width * 0.92, color)


def _torso_outline(skeleton: Skeleton) -> list[Point]:
    u, b = skeleton.unit, skeleton.breadth
    (nx, ny), (hx, hy) = skeleton.neck, skeleton.hip
    top, bottom = 0.112 * u * b, 0.098 * u * b
    return [
        (nx - 0.55 * top, ny),
        (nx + 0.55 * top, ny),
        (nx + top, ny + 0.035 * u),
        (hx + bottom, hy + 0.02 * u),
        (hx - bottom, hy + 0.02 * u),
        (nx - top, ny + 0.035 * u),
    ]


def _draw_torso(canvas: Canvas, character: Character, skeleton: Skeleton) -> None:
    u, b = skeleton.unit, skeleton.breadth
    (nx, ny), (hx, hy) = skeleton.neck, skeleton.hip
    canvas.limb(skeleton.neck, skeleton.head, 0.07 * u, _shade(SKIN_TONES[character.skin], 0.9))
    canvas.polygon(_torso_outline(skeleton), COLORS[character.shirt_color])
    mark = _pattern_color(character.shirt_color)
    if character.shirt_pattern == "striped":
        for share in (0.24, 0.52, 0.80):
            x, y = nx + (hx - nx) * share, ny + (hy - ny) * share
            half = (0.112 - 0.014 * share) * u * b
            canvas.rectangle(x - half, y - 0.021 * u, x + half, y + 0.021 * u, mark)
    elif character.shirt_pattern == "dotted":
        for share, offsets in ((0.25, (-0.52, 0.52)), (0.53, (0.0,)), (0.81, (-0.52, 0.52))):
            x, y = nx + (hx - nx) * share, ny + (hy - ny) * share
            for offset in offsets:
                canvas.ellipse((x + offset * 0.1 * u * b, y), (0.031 * u, 0.031 * u), mark)
    canvas.rectangle(
        hx - 0.098 * u * b, hy - 0.005 * u, hx + 0.098 * u * b, hy + 0.05 * u, COLORS[character.trousers_color]
    )


def _draw_arms(canvas: Canvas, character: Character, skeleton: Skeleton) -> None:
    u = skeleton.unit
    width = 0.068 * u * (0.6 + 0.4 * skeleton.breadth)
    sleeve, skin = _shade(COLORS[character.shirt_color], 0.86), SKIN_TONES[character.skin]
    for side in ("left", "right"):
        shoulder, elbow, wrist = (skeleton.joints[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist"))
        canvas.limb(elbow, wrist, width * 0.85, skin)
        canvas.limb(shoulder, elbow, width, sleeve)
        canvas.ellipse(wrist, (0.042 * u, 0.042 * u), skin)


def _draw_hair_behind(canvas: Canvas, character: Character, skeleton: Skeleton) -> None:
    color, u, (x, y) = HAIR_COLORS[character.hair_color], skeleton.unit, skeleton.head
    if character.hair_style == "long":
        canvas.ellipse((x, y), (1.22 * _HEAD * u, 1.2 * _HEAD * u), color)
        canvas.rectangle(x - 1.22 * _HEAD * u, y, x + 1.22 * _HEAD * u, y + 1.85 * _HEAD * u, color)
    elif character.hair_style == "afro":
        canvas.ellipse((x, y - 0.25 * _HEAD * u), (1.55 * _HEAD * u, 1.45 * _HEAD * u), color)
    elif character.hair_style == "pigtails":
        for sign in (-1, 1):
            center = (x + sign * 1.38 * _HEAD * u, y + 0.25 * _HEAD * u)
            canvas.ellipse(center, (0.46 * _HEAD * u, 0.66 * _HEAD * u), color)


def _draw_head(canvas: Canvas, character: Character, skeleton: Skeleton) -> None:
    u, (x, y) = skeleton.unit, skeleton.head
    r = _HEAD * u
    skin, hair = SKIN_TONES[character.skin], HAIR_COLORS[character.hair_color]
    canvas.ellipse((x, y), (r, r), skin)
    angles = np.linspace(np.pi * 1.04, np.pi * 1.96, 24)
    cap = [(x + 1.06 * r * cos(a), y + 1.06 * r * sin(a)) for a in angles]
    canvas.polygon([*cap, (x + 0.55 * r, y - 0.42 * r), (x - 0.55 * r, y - 0.42 * r)], hair)
    for sign in (-1, 1):
        canvas.ellipse((x + sign * 0.36 * r, y + 0.08 * r), (0.13 * r, 0.17 * r), _INK)
    mouth = [(x + 0.34 * r * t, y + (0.56 - 0.14 * t * t) * r) for t in (-1, -0.5, 0, 0.5, 1)]
    for start, end in pairwise(mouth):
        canvas.limb(start, end, 0.10 * r, (176, 52, 60))


def _draw_accessory(canvas: Canvas, character: Character, skeleton: Skeleton) -> None:
    u, (x, y) = skeleton.unit, skeleton.head
    r = _HEAD * u
    if character.accessory == "glasses":
        for sign in (-1, 1):
            canvas.ellipse((x + sign * 0.44 * r, y + 0.06 * r), (0.42 * r, 0.38 * r), _INK)
            canvas.ellipse((x + sign * 0.44 * r, y + 0.06 * r), (0.28 * r, 0.24 * r), (150, 214, 246))
        canvas.limb((x - 0.1 * r, y), (x + 0.1 * r, y), 0.12 * r, _INK)
    elif character.accessory == "hat":
        canvas.rectangle(x - 1.25 * r, y - 0.82 * r, x + 1.25 * r, y - 0.56 * r, (112, 34, 60))
        canvas.rectangle(x - 0.72 * r, y - 1.55 * r, x + 0.72 * r, y - 0.70 * r, (112, 34, 60))
        canvas.rectangle(x - 0.72 * r, y - 1.02 * r, x + 0.72 * r, y - 0.82 * r, (250, 206, 70))
    elif character.accessory == "scarf":
        nx, ny = skeleton.neck
        canvas.limb((nx - 0.07 * u, ny + 0.005 * u), (nx + 0.07 * u, ny + 0.005 * u), 0.062 * u, (236, 90, 36))
        canvas.limb((nx + 0.05 * u, ny + 0.02 * u), (nx + 0.06 * u, ny + 0.17 * u), 0.052 * u, (236, 90, 36))
    elif character.accessory == "bag":
        shoulder, hx, hy = skeleton.joints["left_shoulder"], skeleton.hip[0], skeleton.hip[1]
        pouch = hx + 0.085 * u * skeleton.breadth
        canvas.limb((shoulder[0] + 0.02 * u, shoulder[1] - 0.02 * u), (pouch, hy - 0.03 * u), 0.03 * u, (122, 76, 40))
        canvas.rectangle(pouch - 0.07 * u, hy - 0.06 * u, pouch + 0.07 * u, hy + 0.075 * u, (150, 92, 46))
        canvas.rectangle(pouch - 0.07 * u, hy - 0.06 * u, pouch + 0.07 * u, hy - 0.015 * u, (98, 58, 30))


def _shade(color: Color, factor: float) -> Color:
    return (int(color[0] * factor), int(color[1] * factor), int(color[2] * factor))


def _pattern_color(shirt: str) -> Color:
    return (34, 40, 84) if shirt in ("white", "yellow", "pink", "orange") else (248, 248, 244)
