"""The caption grammar: first-frame and later-frames prompts in varied wording."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from training.world.attributes import ATTRIBUTES, Character
from training.world.scene import Scene

_NOUNS = ("person", "person", "person", "character", "man", "woman", "figure")
_PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": ("at the beach", "on the beach", "on a sandy beach by the sea"),
    "park": ("in the park", "in a green park", "on the grass between trees"),
    "city": ("in the city", "on a city street", "in front of tall buildings"),
    "room": ("in a room", "indoors in a room", "at home in a room"),
    "snow": ("in the snow", "in snowy mountains", "on a snowy field"),
}
_LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("in daylight", "on a bright day", "by day"),
    "sunset": ("at sunset", "in warm evening light", "in the light of sunset"),
    "night": ("at night", "in the dark of night", "under a night sky"),
}
_ACTION_WORDS: dict[str, tuple[str, ...]] = {
    "walking": ("walking", "taking a walk", "going for a walk"),
    "waving": ("waving", "waving a hand", "waving hello"),
    "jumping": ("jumping", "jumping up and down", "leaping into the air"),
    "dancing": ("dancing", "dancing happily", "moving to music, dancing"),
    "sitting": ("sitting", "sitting on a box", "sitting down"),
}
_ACCESSORY_WORDS = {"glasses": "glasses", "hat": "a hat", "scarf": "an orange scarf", "bag": "a shoulder bag"}
_BODY_WORDS: dict[str, tuple[str, ...]] = {
    "slim": ("slim", "thin"),
    "average": ("average-sized", "of average build"),
    "broad": ("broad", "heavyset"),
}


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def draw_named(rng: np.random.Generator, *, silent_share: float) -> frozenset[str]:
    """Which attributes a caption names: none with ``silent_share``, else a random 1 to 8 of them."""
    if rng.random() < silent_share:
        return frozenset()
    names = list(ATTRIBUTES)
    count = int(rng.integers(1, len(names) + 1))
    return frozenset(str(name) for name in rng.choice(names, count, replace=False))


def _hair(character: Character, named: Collection[str]) -> str:
    color = character.hair_color if "hair_color" in named else ""
    style = character.hair_style if "hair_style" in named else ""
    if style == "afro":
        return f"a {color} afro" if color else "an afro"
    if style == "pigtails":
        return f"{color} pigtails" if color else "pigtails"
    return " ".join(word for word in (style, color, "hair") if word)


def _outfit(character: Character, named: Collection[str]) -> list[str]:
    worn = []
    if {"shirt_color", "shirt_pattern"} & set(named):
        pattern = character.shirt_pattern if "shirt_pattern" in named else ""
        color = character.shirt_color if "shirt_color" in named else ""
        words = " ".join(word for word in (pattern, color, "shirt") if word)
        worn.append(f"an {words}" if words[0] in "aeiou" else f"a {words}")
    if "trousers_color" in named:
        worn.append(f"{character.trousers_color} trousers")
    if "accessory" in named:
        worn.append(_ACCESSORY_WORDS.get(character.accessory, "no accessories"))
    return worn


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def describe(character: Character, named: Collection[str], noun: str, rng: np.random.Generator) -> str:
    """A noun phrase without article that names the chosen attributes: ``slim woman with red hair wearing a hat``."""
    front = ""
    traits: list[str] = []
    if "body_shape" in named:
        word = _pick(rng, _BODY_WORDS[character.body_shape])
        front, traits = ("", [word]) if word.startswith("of ") else (word + " ", [])
    features = []
    if {"hair_color", "hair_style"} & set(named):
        features.append(_hair(character, named))
    if "skin" in named:
        features.append(f"{character.skin} skin")
    if features:
        traits.append("with " + _join(features))
    worn = _outfit(character, named)
    if worn:
        traits.append(_pick(rng, ("wearing ", "in ")) + _join(worn))
    return " ".join([front + noun, *traits])


def _article(phrase: str) -> str:
    return f"An {phrase}" if phrase[0] in "aeiou" else f"A {phrase}"


def first_caption(character: Character, scene: Scene, named: Collection[str], rng: np.random.Generator) -> str:
    """The first-frame prompt: how the character looks, and often where it is.

    It describes the first frame of the clip, so its place and light are the clip's.
    """
    words = [_article(describe(character, named, _pick(rng, _NOUNS), rng))]
    if rng.random() < 0.6:
        words.append(_pick(rng, _PLACE_WORDS[scene.place]))
    if rng.random() < 0.5:
        words.append(_pick(rng, _LIGHT_WORDS[scene.light]))
    return " ".join(words) + "."


def later_caption(
    character: Character, scene: Scene, named: Collection[str], rng: np.random.Generator, *, action_named: bool = True
) -> str:
    """The later-frames prompt: ``The same person ... is waving at the beach at sunset.``

    With ``action_named`` False it leaves out what the person does, as for a free motion, which no word names.
    """
    who = describe(character, named, _pick(rng, _NOUNS), rng)
    action = _pick(rng, _ACTION_WORDS[scene.action]) if action_named else ""
    place, light = _pick(rng, _PLACE_WORDS[scene.place]), _pick(rng, _LIGHT_WORDS[scene.light])
    form = int(rng.integers(3))
    if not action_named:
        return f"The same {who} {'is ' if form else ''}{place} {light}."
    if form == 0:
        return f"The same {who} is {action} {place} {light}."
    if form == 1:
        return f"The same {who} {place}, {action}, {light}."
    light = light[0].upper() + light[1:]
    return f"{light}, the same {who} is {action} {place}."


def neutral_prompts(scene: Scene, *, action_named: bool = True) -> tuple[str, str]:
    """Both prompts in their plainest wording, naming no attribute: only a reference shows who it is."""
    place, light = _PLACE_WORDS[scene.place][0], _LIGHT_WORDS[scene.light][0]
    action = f"{scene.action} " if action_named else ""
    return "A person.", f"The same person is {action}{place} {light}."
