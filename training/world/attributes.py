"""Who a character is: eight attributes, their values, and the split into train and test characters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

TEST_SEED_START = 1_000_000
"""Seeds from here on draw test characters; seeds below draw train characters."""

_TEST_SHARE = 10  # one combination of attributes in ten is a test character

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 44),
    "orange": (246, 140, 28),
    "yellow": (250, 216, 48),
    "green": (38, 158, 66),
    "teal": (22, 172, 172),
    "blue": (38, 88, 212),
    "purple": (128, 56, 178),
    "pink": (246, 128, 180),
    "white": (246, 246, 246),
    "black": (38, 38, 44),
}
"""Shirt and trouser colours, RGB."""

SKIN_TONES: dict[str, tuple[int, int, int]] = {
    "pale": (254, 228, 212),
    "light": (234, 182, 140),
    "tan": (192, 134, 88),
    "brown": (136, 84, 50),
    "dark": (80, 50, 38),
}

HAIR_COLORS: dict[str, tuple[int, int, int]] = {
    "black": (30, 26, 34),
    "brown": (112, 62, 28),
    "blonde": (242, 206, 88),
    "red": (206, 66, 26),
    "grey": (168, 172, 182),
    "blue": (58, 112, 226),
}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKIN_TONES),
    "hair_color": tuple(HAIR_COLORS),
    "hair_style": ("short", "long", "afro", "pigtails"),
    "shirt_color": tuple(COLORS),
    "shirt_pattern": ("plain", "striped", "dotted"),
    "trousers_color": tuple(COLORS),
    "accessory": ("none", "glasses", "hat", "scarf", "bag"),
    "body_shape": ("slim", "average", "broad"),
}
"""The eight attributes and their values, in the order in which labels index them."""


@dataclass(frozen=True)
class Character:
    """One little person: a value for each of the eight attributes of :data:`ATTRIBUTES`."""

    skin: str
    hair_color: str
    hair_style: str
    shirt_color: str
    shirt_pattern: str
    trousers_color: str
    accessory: str
    body_shape: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}.")

    def labels(self) -> tuple[int, ...]:
        """The index of each attribute's value, in the order of :data:`ATTRIBUTES`."""
        return tuple(values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())

    @property
    def is_test(self) -> bool:
        """Whether this combination is held out: a stable hash of the attributes, one in ten."""
        text = "|".join(getattr(self, field.name) for field in fields(self))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _TEST_SHARE == 0


def draw_character(rng: np.random.Generator, *, test: bool) -> Character:
    """A random character of the train or of the test split; the two share no combination of attributes."""
    while True:
        character = Character(**{name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()})
        if character.is_test == test:
            return character
