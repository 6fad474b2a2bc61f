"""Protocol of the study, after the authors' public page: pairs of clips, five-point scale, attention checks.

A trial shows a reference picture and two clips of it. The rater chooses the clip that preserves the person's appearance
better: A much, A slightly, about equal, B slightly, B much, scored +2 to -2 for the first system. In an attention check
one clip shows another person. Its clips are the system `truth`'s if it is one of the systems, else the two reference
pictures held as clips: no other system is sure to show the right person, a base without references never does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from contextanyone_core.errors import InputError
from evaluation.clip_set import Item
from evaluation.metrics.catalogue import TRUTH
from evaluation.metrics.frames import file_digest

QUESTION = (
    "Which video keeps the appearance of the person in the picture better: face, hairstyle, clothing, accessories? "
    "Ignore the place, the camera and the motion."
)
REFERENCE = "(reference)"
"""In place of a system: the reference picture, held as a clip."""

CHECKS = 4
MIN_SECONDS = 3.0
PASSED_SHARE = 0.8


@dataclass(frozen=True)
class Trial:
    """Two clips of one item; in a check, `second` is another item's clip, and `first` must win.

    Attributes:
        id: name of the trial in the answers; does not reveal its content.
        item: the item whose reference is shown.
        reference: digest of that picture; items may share one.
        first, second: (system, item) of the clips; `REFERENCE` in place of a system.
        check: whether it is an attention check.
    """

    id: str
    item: str
    reference: str
    first: tuple[str, str]
    second: tuple[str, str]
    check: bool


def make_trials(items: Sequence[Item], systems: Sequence[str], against: str | None, seed: int) -> list[Trial]:
    """All pairs of systems (or of `against` with each other one) on every item, and four checks, in a fixed order.

    The page randomises order and sides for each rater.

    Raises:
        InputError: there are fewer than two systems or items, `against` is not a system, or all items have one picture
            as their reference.
    """
    if len(systems) < 2 or len(items) < 2:
        raise InputError(f"There are {len(systems)} systems and {len(items)} items; a study needs two of each.")
    if against is not None and against not in systems:
        raise InputError(f"--against is {against}; the systems are {', '.join(systems)}.")
    rng = random.Random(seed)
    pairs = list(combinations(systems, 2))
    if against is not None:
        pairs = [(against, other) for other in systems if other != against]
    picture = {item.id: file_digest(item.reference) for item in items}
    compared = [
        (item.id, picture[item.id], (one, item.id), (two, item.id), False) for item in items for one, two in pairs
    ]
    checked = rng.sample(list(items), min(CHECKS, len(items)))
    for item in checked:
        other = rng.choice([candidate for candidate in items if picture[candidate.id] != picture[item.id]] or [None])
        if other is None:
            raise InputError("All items have one reference; attention checks need clips of somebody else.")
        system = TRUTH if TRUTH in systems else REFERENCE
        compared.append((item.id, picture[item.id], (system, item.id), (system, other.id), True))
    names = rng.sample(range(10**6), len(compared))
    return [Trial(f"t{name:06d}", *rest) for name, rest in zip(names, compared, strict=True)]
