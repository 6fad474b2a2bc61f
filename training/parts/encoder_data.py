"""Pictures and captions of the character world for the encoders, with the attributes that each contains as labels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.frames import on_white
from training.world import (
    ACTIONS,
    ATTRIBUTES,
    LIGHTS,
    PLACES,
    Character,
    Scene,
    first_caption,
    later_caption,
    neutral_prompts,
    random_frame,
)
from training.world.captions import draw_named

LABELS: dict[str, tuple[str, ...]] = {**ATTRIBUTES, "action": ACTIONS, "place": PLACES, "light": LIGHTS}
"""What a picture shows and a caption may name: the eight attributes and the scene, in the order of label columns."""

UNKNOWN = -1
"""The label of what a caption does not name, or a picture does not show."""

_ACTION, _PLACE, _LIGHT = (list(LABELS).index(name) for name in ("action", "place", "light"))
_SILENT_SHARE = 0.1
_RENDER_SIZES = ((64, 64), (128, 128), (96, 128), (128, 96))
_RENDER_SHARES = (0.6, 0.3, 0.05, 0.05)
# Letters, emoji and Chinese characters: what a prompt may hold that no caption does.
_FOREIGN = ((0x61, 0x7B), (0x1F600, 0x1F640), (0x4E00, 0x9FA5))

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Variety:
    """Shares of the pictures and captions that are altered, so that the encoders do not depend on the renderer."""

    white_background: float
    blur: float
    foreign_words: float


@dataclass(frozen=True)
class Pair:
    """A picture (size, size, 3) uint8 and a caption of it; labels (11,), UNKNOWN where nothing is shown or named."""

    picture: NDArray[np.uint8]
    caption: str
    picture_labels: Labels
    caption_labels: Labels


def draw_pairs(seed: int, size: int, variety: Variety, rng: np.random.Generator) -> list[Pair]:
    """Return the two pictures of one world seed (the same character in two scenes), each with a caption of its own."""
    height, width = _RENDER_SIZES[int(rng.choice(len(_RENDER_SIZES), p=_RENDER_SHARES))]
    world = random_frame(seed, (height, width))
    shots = (
        (world.video[0], world.masks[0], world.scene),
        (world.reference, world.reference_mask, world.reference_scene),
    )
    pairs = []
    for picture, mask, scene in shots:
        labels = np.array([*world.character.labels(), *scene.labels()], np.int64)
        alone = rng.random() < variety.white_background
        if alone:
            labels[[_PLACE, _LIGHT]] = UNKNOWN
            picture = on_white(picture, mask)
        caption, caption_labels = draw_caption(world.character, scene, rng, with_scene=not alone)
        if rng.random() < variety.foreign_words:
            caption = _with_foreign_word(caption, rng)
        picture = _blurred(picture, rng) if rng.random() < variety.blur else picture
        pairs.append(Pair(fit_square(picture, size), caption, labels, caption_labels))
    return pairs


def draw_caption(
    character: Character, scene: Scene, rng: np.random.Generator, *, with_scene: bool = True
) -> tuple[str, Labels]:
    """Return a caption in one of the forms that the transformer reads, and labels (11,) of what it names.

    The forms: first-frame prompt, later-frames prompt, both joined by a space, the neutral prompts. Without a scene
    it is a first-frame prompt that states neither place nor light.
    """
    if not with_scene:
        while True:
            text, labels = _first(character, scene, rng)
            if labels[_PLACE] == UNKNOWN and labels[_LIGHT] == UNKNOWN:
                return text, labels
    form = rng.random()
    if form < 0.25:
        return _first(character, scene, rng)
    if form < 0.5:
        return _later(character, scene, rng)
    if form < 0.95:
        (first, first_labels), (later, later_labels) = _first(character, scene, rng), _later(character, scene, rng)
        return f"{first} {later}", np.maximum(first_labels, later_labels)
    return " ".join(neutral_prompts(scene)), _named_labels(character, scene, {"action", "place", "light"})


def stack_labels(labels: Iterable[Labels]) -> Tensor:
    """Return the labels of a batch, int64 (B, 11)."""
    return torch.from_numpy(np.stack(list(labels)))


def fit_square(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pad a picture (H, W, 3) with white to a square, and average it down to (size, size, 3)."""
    height, width = picture.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + height, left : left + width] = picture
    return (
        square if side == size else np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    )


def _first(character: Character, scene: Scene, rng: np.random.Generator) -> tuple[str, Labels]:
    named = draw_named(rng, silent_share=_SILENT_SHARE)
    words = int(rng.integers(1 << 31))

    def write(where: Scene) -> str:
        return first_caption(character, where, named, np.random.default_rng(words))

    text = write(scene)
    return text, _named_labels(character, scene, named | _scene_parts_told(write, text, scene))


def _later(character: Character, scene: Scene, rng: np.random.Generator) -> tuple[str, Labels]:
    named = draw_named(rng, silent_share=_SILENT_SHARE)
    text = later_caption(character, scene, named, rng)
    return text, _named_labels(character, scene, named | {"action", "place", "light"})


def _scene_parts_told(write: Callable[[Scene], str], text: str, scene: Scene) -> set[str]:
    """A caption states the place, or the light, if it would differ for another one."""
    other_place = PLACES[(PLACES.index(scene.place) + 1) % len(PLACES)]
    other_light = LIGHTS[(LIGHTS.index(scene.light) + 1) % len(LIGHTS)]
    others = {"place": replace(scene, place=other_place), "light": replace(scene, light=other_light)}
    return {part for part, other in others.items() if write(other) != text}


def _named_labels(character: Character, scene: Scene, named: Iterable[str]) -> Labels:
    known, told = (*character.labels(), *scene.labels()), set(named)
    return np.array([label if name in told else UNKNOWN for name, label in zip(LABELS, known, strict=True)], np.int64)


def _with_foreign_word(caption: str, rng: np.random.Generator) -> str:
    low, high = _FOREIGN[int(rng.integers(len(_FOREIGN)))]
    word = "".join(chr(int(code)) for code in rng.integers(low, high, int(rng.integers(1, 6))))
    words = caption.split(" ")
    words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(words)


def _blurred(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    sigma = float(rng.uniform(0.3, 0.9)) * max(picture.shape[:2]) / 64.0
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)
