"""What happens, where and in which light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ACTIONS: tuple[str, ...] = ("walking", "waving", "jumping", "dancing", "sitting")
PLACES: tuple[str, ...] = ("beach", "park", "city", "room", "snow")
LIGHTS: tuple[str, ...] = ("day", "sunset", "night")


@dataclass(frozen=True)
class Scene:
    """An action, a place and a light, each one of :data:`ACTIONS`, :data:`PLACES`, :data:`LIGHTS`."""

    action: str
    place: str
    light: str

    def __post_init__(self) -> None:
        for name, values in (("action", ACTIONS), ("place", PLACES), ("light", LIGHTS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}.")

    def labels(self) -> tuple[int, int, int]:
        """The index of action, place and light."""
        return ACTIONS.index(self.action), PLACES.index(self.place), LIGHTS.index(self.light)


def draw_scene(rng: np.random.Generator, *, other_than: Scene | None = None) -> Scene:
    """A random scene; with ``other_than``, one that differs from it in action, place and light alike.

    Paper (data): the reference is an edit of a ground-truth frame whose action, lighting and environment are changed.
    """

    def pick(values: tuple[str, ...], taken: str | None) -> str:
        return str(rng.choice([value for value in values if value != taken]))

    taken = other_than
    return Scene(
        action=pick(ACTIONS, taken.action if taken else None),
        place=pick(PLACES, taken.place if taken else None),
        light=pick(LIGHTS, taken.light if taken else None),
    )
