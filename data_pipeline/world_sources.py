"""Videos of the character world with planted faults, and the truth about each: what the filters are measured on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from contextanyone_core.media.video_io import write_clip
from data_pipeline.models.picture_files import encode_picture
from training.world import (
    Character,
    Clip,
    Shot,
    draw_character,
    draw_scene,
    draw_shot,
    first_caption,
    later_caption,
    render_clip,
)

Frames = NDArray[np.uint8]
Fault = Literal[
    "none", "two_people", "cut", "dissolve", "static", "dark", "blurred", "shaky", "text", "letterbox", "tiny",
    "leaves", "wrong_reference", "copied_reference", "duplicate",
]  # fmt: skip
FAULTS: tuple[Fault, ...] = (
    "none", "two_people", "cut", "dissolve", "static", "dark", "none", "blurred", "shaky", "text", "letterbox", "none",
    "tiny", "leaves", "wrong_reference", "copied_reference", "none", "duplicate",
)  # fmt: skip
"""What source number n has planted: entry n modulo the length. A duplicate is of the source before it."""

_DISSOLVE = (8, 16)  # frames
_NAMED = frozenset({"hair_color", "hair_style", "shirt_color", "trousers_color"})


class WorldSet(BaseModel):
    """How many sources, from which seed, of how many frames a shot, at which size in pixels (square)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    frames: int = Field(default=25, ge=9, le=400)
    size: int = Field(default=64, ge=32, multiple_of=2)


@dataclass(frozen=True)
class _Drawn:
    """What is in a source: its people over time and its shots."""

    video: Frames
    people: list[tuple[str, Frames, NDArray[np.float32]]]  # who, masks (T, H, W), joints (T, 14, 2)
    spans: list[tuple[int, int]]


def write_source(folder: Path, world: WorldSet, number: int) -> None:
    """Write `video.mp4`, `truth.json`, `truth.npz` (masks, joints) and `reference.png` with its truth.

    Args:
        folder: an empty folder.
        number: of the source within the set.
    """
    fault = FAULTS[number % len(FAULTS)]
    origin = number - 1 if fault == "duplicate" else number
    rng = np.random.default_rng([world.seed, origin])
    character, scene = draw_character(rng, test=False), draw_scene(rng)
    shot = draw_shot(scene, rng)
    drawn = _draw(world, fault, character, shot, rng)
    reference, joints, wearer = _reference(world, fault, character, drawn, rng)
    video = _spoil(drawn.video, fault, np.random.default_rng([world.seed, number, 1]))
    write_clip(folder / "video.mp4", video, {})
    encode_picture(folder / "reference.png", reference)
    masks = np.stack([mask for _, mask, _ in drawn.people])
    np.savez_compressed(
        folder / "truth.npz",
        masks=masks,
        joints=np.stack([points for _, _, points in drawn.people]),
        reference_joints=joints,
    )
    truth = {
        "fault": fault,
        "people": [who for who, _, _ in drawn.people],
        "character": asdict(character),
        "reference_character": asdict(wearer),
        "spans": drawn.spans,
        "prompts": [
            first_caption(character, scene, _NAMED, rng),
            later_caption(character, scene, frozenset(), rng),
        ],
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def read_truth(folder: Path) -> dict[str, Any]:
    """The content of a source's `truth.json`."""
    found: dict[str, Any] = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    return found


def name_of(character: Character) -> str:
    """One word that is the same for the same person."""
    return "-".join(str(label) for label in character.labels())


def _draw(world: WorldSet, fault: Fault, character: Character, shot: Shot, rng: np.random.Generator) -> _Drawn:
    size, count = (world.size, world.size), world.frames
    who, numbers = name_of(character), np.arange(count, dtype=np.float64)
    if fault == "two_people":
        left = render_clip(character, replace(shot, x=0.28, height=0.62), numbers, size)
        other = draw_character(rng, test=False)
        right = render_clip(other, replace(draw_shot(shot.scene, rng), x=0.74, height=0.62), numbers, size)
        share = right.masks[..., None] / 255.0
        video = np.round(left.video * (1 - share) + right.video * share).astype(np.uint8)
        people = [(who, left.masks, left.keypoints), (name_of(other), right.masks, right.keypoints)]
        return _Drawn(video, people, [(0, count)])
    if fault == "leaves":
        clips = [
            render_clip(character, replace(shot, x=shot.x + 0.09 * max(0, n - count // 3)), np.array([float(n)]), size)
            for n in range(count)
        ]
        return _one(who, _joined(clips))
    if fault in ("cut", "dissolve"):
        elsewhere = draw_shot(draw_scene(rng, other_than=shot.scene), rng)
        length = int(rng.integers(_DISSOLVE[0], _DISSOLVE[1] + 1)) if fault == "dissolve" else 0
        return _two_shots(who, character, (shot, elsewhere), (world, length))
    if fault == "tiny":
        shot = replace(shot, height=0.16)
    clip = render_clip(character, shot, numbers * 0 if fault == "static" else numbers, size)
    return _one(who, clip)


def _one(who: str, clip: Clip) -> _Drawn:
    return _Drawn(clip.video, [(who, clip.masks, clip.keypoints)], [(0, len(clip.video))])


def _joined(clips: list[Clip]) -> Clip:
    return Clip(
        np.concatenate([clip.video for clip in clips]),
        np.concatenate([clip.masks for clip in clips]),
        np.concatenate([clip.keypoints for clip in clips]),
    )


def _two_shots(who: str, character: Character, shots: tuple[Shot, Shot], how: tuple[WorldSet, int]) -> _Drawn:
    """Two shots, the second beginning at once or over `length` frames."""
    world, length = how
    count, size = world.frames, (world.size, world.size)
    first = render_clip(character, shots[0], np.arange(count + length, dtype=np.float64), size)
    second = render_clip(character, shots[1], np.arange(count + length, dtype=np.float64), size)
    share = (np.arange(length) + 1.0)[:, None, None, None] / (length + 1)
    middle = np.round(first.video[count:] * (1 - share) + second.video[:length] * share).astype(np.uint8)
    video = np.concatenate([first.video[:count], middle, second.video[length:]])
    masks = np.concatenate([first.masks[:count], second.masks])
    joints = np.concatenate([first.keypoints[:count], second.keypoints])
    return _Drawn(video, [(who, masks, joints)], [(0, count), (count + length, 2 * count + length)])


def _reference(
    world: WorldSet, fault: Fault, character: Character, drawn: _Drawn, rng: np.random.Generator
) -> tuple[Frames, NDArray[np.float32], Character]:
    """The picture that an editor would have made: the same person elsewhere, or what is planted."""
    if fault == "copied_reference":
        middle = len(drawn.video) // 2
        brighter = np.clip(drawn.video[middle] * 1.04 + 3, 0, 255).astype(np.uint8)
        return brighter, drawn.people[0][2][middle], character
    wearer = draw_character(rng, test=False) if fault == "wrong_reference" else character
    still = render_clip(wearer, draw_shot(draw_scene(rng), rng), np.array([3.0]), (world.size, world.size))
    return still.video[0], still.keypoints[0], wearer


def _spoil(video: Frames, fault: Fault, rng: np.random.Generator) -> Frames:
    """What a camera, an editor or a copyist does to the pixels."""
    size = video.shape[1]
    if fault == "dark":
        return (video * rng.uniform(0.05, 0.12)).astype(np.uint8)
    if fault == "blurred":
        sigma = size / 64 * rng.uniform(2.5, 4.0)
        return np.stack([np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8) for frame in video])
    if fault == "shaky":
        reach = size / 64 * 4.0
        return np.stack([_moved(frame, rng.uniform(-reach, reach, 2)) for frame in video])
    if fault == "text":
        return np.stack([_with_text(frame, _word(video), size) for frame in video])
    if fault == "letterbox":
        bar = round(size * rng.uniform(0.09, 0.16))
        barred = video.copy()
        barred[:, :bar], barred[:, size - bar :] = 0, 0
        return barred
    if fault == "duplicate":
        return np.asarray(np.clip(video * rng.uniform(0.95, 1.05) + rng.uniform(-4, 4), 0, 255), np.uint8)
    return video


def _word(video: Frames) -> str:
    """A caption that is the same for all frames of a video."""
    return ("SUBSCRIBE", "LIVE NEWS", "EPISODE 3", "PREVIEW")[int(video[0, 0, 0].sum()) % 4]


def _with_text(frame: Frames, text: str, size: int) -> Frames:
    scale = size / 64 * 0.33
    picture, place = np.ascontiguousarray(frame), (round(size * 0.04), round(size * 0.93))
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 3)
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1)
    return np.asarray(picture, np.uint8)


def _moved(frame: Frames, by: NDArray[np.float64]) -> Frames:
    """A frame moved by x and y pixels, what comes in mirrored."""
    way = np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float32)
    size = (frame.shape[1], frame.shape[0])
    return np.asarray(cv2.warpAffine(frame, way, size, borderMode=cv2.BORDER_REFLECT), np.uint8)
