"""Drawing poses in the style of DWPose and controlnet_aux, which Wan2.1-Fun-Control was trained on, without OpenCV."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .body import BONES
from .sequence import SEEN, Pixels, Points, PoseSequence

Color = tuple[int, int, int]

JOINT_COLORS: tuple[Color, ...] = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
"""RGB of the 18 joints, and of the limbs in the order of `BONES` before they are darkened."""

# Paper: AnimateAnywhere gives its base model pose pictures and does not say which points they show, nor how.
_LIMB_SHADE = 0.6
LIMB_COLORS: tuple[Color, ...] = tuple(
    (int(red * _LIMB_SHADE), int(green * _LIMB_SHADE), int(blue * _LIMB_SHADE))
    for red, green, blue in JOINT_COLORS[: len(BONES)]
)

HAND_LINES = tuple(pair for first in (1, 5, 9, 13, 17) for pair in pairwise((0, *range(first, first + 4))))


def _hue(share: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(share, 1.0, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


HAND_COLORS: tuple[Color, ...] = tuple(_hue(index / len(HAND_LINES)) for index in range(len(HAND_LINES)))
HAND_DOT: Color = (0, 0, 255)
FACE_DOT: Color = (255, 255, 255)

_FINE = 4  # supersampling factor per side, for anti-aliasing
_CORNERS = 36


@dataclass(frozen=True)
class PoseStyle:
    """The drawing settings that differ between the full size and the miniature, and the figures' proportion.

    Attributes:
        background: RGB; black at full size, mid-grey in the miniature, whose VAE was not trained on black pictures.
        half_width: half width of a limb and radius of a joint, in pixels; lines of the hands have half of it as width,
            dots of the face three quarters of it as radius.
        face: whether the face is drawn.
        head: the head's height, chin to crown, in lengths from nose to neck: an adult's; the miniature's figures have
            large heads, and the head's middle as nose.
    """

    background: Color = (0, 0, 0)
    half_width: float = 4.0
    face: bool = True
    head: float = 1.35


FULL_SIZE = PoseStyle()
MINIATURE = PoseStyle((127, 127, 127), 1.5, head=2.05)
STYLES = {"full": FULL_SIZE, "miniature": MINIATURE}
"""By the names of `config.POSE_STYLES`."""


def draw_poses(poses: PoseSequence, style: PoseStyle = FULL_SIZE) -> Pixels:
    """Draw a sequence at the size of its canvas, which must be that of the video: drawn poses are never resized.

    Limbs have 0.6 of their colour and are drawn if both ends are visible; the joints over them have full colour.

    Returns: uint8 (T, H, W, 3).
    Source: DWPose and controlnet_aux (order, colours, widths), here with anti-aliased edges.
    """
    frames = np.empty((poses.num_frames, poses.height, poses.width, 3), np.uint8)
    frames[:] = style.background
    for index, frame in enumerate(frames):
        hands = () if poses.hands is None else tuple(poses.hands[index])
        face = poses.face[index] if poses.face is not None and style.face else None
        draw_figure(frame, poses.body[index], hands, face, style)
    return frames


def draw_figure(frame: Pixels, body: Points, hands: tuple[Points, ...], face: Points | None, style: PoseStyle) -> None:
    """Draw one figure, body (18, 3), hands (21, 3) each and face (70, 3), into a frame (H, W, 3), in place."""
    everything = np.concatenate([body, *hands, *([] if face is None else [face])])
    box = _box(everything[everything[:, 2] > SEEN, :2], frame.shape[:2], style.half_width)
    if box is None:
        return
    left, top, right, bottom = box
    part = Image.fromarray(np.ascontiguousarray(frame[top:bottom, left:right]))
    pen = _Pen(part.resize((part.width * _FINE, part.height * _FINE), Image.Resampling.NEAREST), (left, top))
    _draw_body(pen, body, style.half_width)
    for hand in hands:
        _draw_hand(pen, hand, style.half_width)
    if face is not None:
        for x, y, _ in face[face[:, 2] > SEEN]:
            pen.ellipse((x, y), (0.75 * style.half_width,) * 2, FACE_DOT)
    frame[top:bottom, left:right] = np.asarray(pen.picture.reduce(_FINE))


class _Pen:
    """Draws ellipses as polygons on an enlarged crop of the frame, whose upper left corner is `origin`."""

    def __init__(self, picture: Image.Image, origin: tuple[int, int]) -> None:
        self.picture = picture
        self._draw = ImageDraw.Draw(picture)
        self._origin = np.asarray(origin, np.float64)
        turns = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        self._circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)

    def ellipse(self, center: tuple[float, float], radii: tuple[float, float], color: Color, angle: float = 0) -> None:
        """Fill an ellipse, its first radius along `angle` in radians; all in pixels of the frame."""
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = (self._circle * radii) @ turn + center
        self._draw.polygon([(x, y) for x, y in ((corners - self._origin) * _FINE - 0.5).tolist()], fill=color)

    def line(self, start: NDArray[np.float64], end: NDArray[np.float64], width: float, color: Color) -> None:
        """Draw a line with square ends."""
        along = end - start
        length = float(np.hypot(*along))
        if length == 0:
            return
        side = np.array([-along[1], along[0]]) / length * width / 2
        corners = np.array([start + side, end + side, end - side, start - side])
        self._draw.polygon([(x, y) for x, y in ((corners - self._origin) * _FINE - 0.5).tolist()], fill=color)


def _draw_body(pen: _Pen, body: Points, half_width: float) -> None:
    seen = body[:, 2] > SEEN
    for (parent, child), color in zip(BONES, LIMB_COLORS, strict=True):
        if seen[parent] and seen[child]:
            start, end = body[parent, :2], body[child, :2]
            x, y = ((start + end) / 2).tolist()
            across, down = (end - start).tolist()
            half = float(np.hypot(across, down)) / 2
            pen.ellipse((x, y), (half, half_width), color, float(np.arctan2(down, across)))
    for joint, color in enumerate(JOINT_COLORS):
        if seen[joint]:
            pen.ellipse((float(body[joint, 0]), float(body[joint, 1])), (half_width, half_width), color)


def _draw_hand(pen: _Pen, hand: Points, half_width: float) -> None:
    seen = hand[:, 2] > SEEN
    for (one, other), color in zip(HAND_LINES, HAND_COLORS, strict=True):
        if seen[one] and seen[other]:
            pen.line(hand[one, :2], hand[other, :2], half_width / 2, color)
    for x, y, _ in hand[seen]:
        pen.ellipse((x, y), (half_width, half_width), HAND_DOT)


def _box(points: NDArray[np.float64], size: tuple[int, ...], half_width: float) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the area that drawing points (N, 2) can change; None if it is empty."""
    if not len(points):
        return None
    height, width = size
    margin = half_width + 1
    low, high = np.floor(points.min(axis=0) - margin), np.ceil(points.max(axis=0) + margin)
    left, top = (int(max(0, value)) for value in low)
    right, bottom = int(min(width, high[0])), int(min(height, high[1]))
    return (left, top, right, bottom) if left < right and top < bottom else None
