"""Figures for the tests of poses: a person who stands and faces the viewer, and strategies that move the limbs."""

import json

import numpy as np
from hypothesis import strategies as st

from contextanyone_core.pose.body import BONES
from contextanyone_core.pose.reading import PoseSource, read_poses
from contextanyone_core.pose.sequence import BODY, PoseSequence

ANGLES = np.radians([180, 0, 110, 100, 70, 80, 100, 92, 90, 80, 88, 90, 270, 225, 190, 315, 350])
LENGTHS = np.array([40, 40, 60, 50, 60, 50, 100, 80, 75, 100, 80, 75, 45, 15, 14, 15, 14], float)
NECK = (300.0, 140.0)


def figure(angles=ANGLES, lengths=LENGTHS, neck=NECK) -> np.ndarray:
    """A body (18, 3) from the angle and length of each bone, all points seen."""
    body = np.zeros((BODY, 3))
    body[1] = (*neck, 1)
    for (parent, child), angle, length in zip(BONES, angles, lengths, strict=True):
        body[child] = (*(body[parent, :2] + length * np.array([np.cos(angle), np.sin(angle)])), 1)
    return body


def sequence(bodies, size=(480, 832), fps=16.0, **parts) -> PoseSequence:
    return PoseSequence(np.array(bodies), size[1], size[0], fps, **parts)


def standing(**changes) -> PoseSequence:
    return sequence([figure(**changes)])


def angles_of(body: np.ndarray) -> np.ndarray:
    """Unit vectors (17, 2) along the bones of a body, zero where both ends are missing."""
    along = np.array([body[child, :2] - body[parent, :2] for parent, child in BONES])
    return along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)


def lengths_of(body: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(body[child, :2] - body[parent, :2]) for parent, child in BONES])


@st.composite
def dances(draw, max_frames=6, missing=False) -> PoseSequence:
    """A few frames of a person with any angles and lengths who wanders about; perhaps with points missing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = draw(st.integers(1, max_frames))
    lengths = LENGTHS * rng.uniform(0.6, 1.7, 17)
    lengths[[1, 4, 5, 9, 10, 11, 15, 16]] = lengths[[0, 2, 3, 6, 7, 8, 13, 14]]
    bodies = []
    for _ in range(frames):
        neck = rng.uniform((250, 100), (450, 180))
        bodies.append(figure(ANGLES + rng.normal(0, 0.6, 17), lengths, neck))
    bodies = np.array(bodies)
    if missing:
        bodies[rng.random(bodies.shape[:2]) < 0.15] = 0
    return sequence(bodies)


def person(body, **more):
    return {"person_id": [-1], "pose_keypoints_2d": np.asarray(body).reshape(-1).tolist(), **more}


def frame(*people, width=832, height=480):
    return {"people": list(people), "canvas_width": width, "canvas_height": height}


def read(tmp_path, content, **source):
    path = tmp_path / "poses.json"
    path.write_text(json.dumps(content))
    return read_poses(path, PoseSource(**source))


def at(x, y=140):
    """A figure in a frame, 330 pixels high."""
    return person(figure(neck=(x, y)))
