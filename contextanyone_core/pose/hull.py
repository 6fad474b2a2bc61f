"""Where the person will be in a video that follows a pose: the dilated convex hull of the pose's figure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..shapes import FRAME_STEP
from .drawing import FULL_SIZE, PoseStyle
from .drawn import drawn_parts
from .sequence import SEEN, Pixels, Points, PoseSequence

Shares = NDArray[np.float32]
"""The fraction of each latent that is covered, from 0 to 1."""

# Paper: the masks are of the user's clip; where the person of a generated video is, is not stated. Here the driving
# pose says it.
DILATION = 0.6
"""How far the hull extends beyond the figure, in heights of the head: about from the nose to above the hair."""

_LATENT = 8  # pixels per side of a latent
_NOSE, _NECK, _HIPS, _SHOULDERS = 0, 1, (8, 11), (2, 5)
_PERCENTILE = 90  # over the frames, because foreshortening only makes lengths shorter
_NOSE_TO_NECK = {"neck to hips": 0.34, "shoulders": 0.38, "figure": 0.1}
"""Length from nose to neck relative to other lengths of the body, for an adult."""
_DIRECTIONS = 72


def person_hull(poses: PoseSequence | Pixels, style: PoseStyle = FULL_SIZE) -> Shares:
    """The fraction of each latent that the dilated hull of the figure covers, (t, H/8, W/8).

    It is the largest fraction within each of the causal VAE's groups of frames, 0 | 1-4 | 5-8 and so on, as for masks
    in training. A frame that shows nobody has no hull.

    Args:
        poses: keypoints on the video's canvas, or drawn poses of its size, uint8 (T, H, W, 3); sides are multiples
            of 8.
        style: the model's, for the size of its figures' heads.

    Raises: InputError as `inspect_drawn`.
    """
    if isinstance(poses, PoseSequence):
        whole = poses.whole
        figures = [frame[frame[:, 2] > SEEN, :2] for frame in whole]
        size, head = (poses.height, poses.width), style.head * nose_to_neck(poses)
    else:
        figures, size = _drawn_points(poses), poses.shape[1:3]
        head = style.head * _NOSE_TO_NECK["figure"] * _extent(figures)
    return _grouped(np.stack([_hull(points, DILATION * head, (size[0], size[1])) for points in figures]))


def nose_to_neck(poses: PoseSequence) -> float:
    """Length from nose to neck in pixels, from the first of these that any frame shows.

    The length itself; that from the neck to the middle of the hips; the width of the shoulders; else the longer side of
    the figure's bounding box.
    """
    body, seen = poses.body, poses.body[..., 2] > SEEN
    hips = body[:, _HIPS].mean(axis=1)
    pairs = {
        "nose to neck": (body[:, _NOSE], body[:, _NECK], seen[:, _NOSE] & seen[:, _NECK]),
        "neck to hips": (body[:, _NECK], hips, seen[:, _NECK] & seen[:, _HIPS].all(axis=1)),
        "shoulders": (body[:, _SHOULDERS[0]], body[:, _SHOULDERS[1]], seen[:, _SHOULDERS].all(axis=1)),
    }
    for name, (one, other, shown) in pairs.items():
        lengths = np.linalg.norm((one - other)[shown, :2], axis=1)
        if (lengths > 0).any():
            return _NOSE_TO_NECK.get(name, 1.0) * float(np.percentile(lengths, _PERCENTILE))
    return _NOSE_TO_NECK["figure"] * _extent([frame[shown, :2] for frame, shown in zip(body, seen, strict=True)])


def _extent(figures: list[Points]) -> float:
    """The longer side of the figures' bounding boxes, in pixels; 0 if there is no figure."""
    sides = [float(np.ptp(points, axis=0).max()) for points in figures if len(points)]
    return float(np.percentile(sides, _PERCENTILE)) if sides else 0.0


def _hull(points: Points, radius: float, size: tuple[int, int]) -> Shares:
    """The fraction of each latent, (H/8, W/8), within `radius` pixels of the convex hull of points (N, 2)."""
    height, width = size
    if not len(points):
        return np.zeros((height // _LATENT, width // _LATENT), np.float32)
    turns = np.linspace(0, 2 * np.pi, _DIRECTIONS, endpoint=False)
    outward = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    corners = points[(points @ outward.T).argmax(axis=0)] + radius * outward  # ordered by angle: of a convex polygon
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners - 0.5], fill=255, outline=255)
    return np.asarray(mask.reduce(_LATENT), np.float32) / np.float32(255)


def _grouped(masks: Shares) -> Shares:
    """Masks of frames (T, h, w) as the maximum over each of the VAE's groups of frames, (t, h, w)."""
    later = [masks[start : start + FRAME_STEP].max(axis=0) for start in range(1, len(masks), FRAME_STEP)]
    return np.stack([masks[0], *later])


def _drawn_points(frames: Pixels) -> list[Points]:
    """x and y of the figure's pixels in each frame: those drawn in the bounding box of the limbs, or near it.

    Pixels farther away than the head may be, such as a watermark, do not belong to the person.
    """
    drawn, coloured = drawn_parts(frames)
    limbs = coloured if coloured.any() else drawn
    return [_within(_places(all_of_it), _places(some)) for all_of_it, some in zip(drawn, limbs, strict=True)]


def _places(mask: NDArray[np.bool_]) -> Points:
    """x and y, (N, 2), of the pixels of a mask (H, W)."""
    places: Points = np.argwhere(mask)[:, ::-1].astype(np.float64)
    return places


def _within(points: Points, limbs: Points) -> Points:
    """The points (N, 2) in the bounding box of limbs (M, 2), enlarged by the length from nose to neck."""
    if not len(limbs):
        return points[:0]
    margin = _NOSE_TO_NECK["figure"] * _extent([limbs])
    inside = (points >= limbs.min(axis=0) - margin) & (points <= limbs.max(axis=0) + margin)
    kept: Points = points[inside.all(axis=1)]
    return kept
