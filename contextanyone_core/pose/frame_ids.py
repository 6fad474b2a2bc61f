"""The frames of a clip from a list of image ids, which may lack frames without people, as COCO's results do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from ..media.read_video import natural_key

Id = int | float | str

_LONGEST = 10
"""Missing frames are inserted only if the clip becomes at most this many times as long."""


def frame_order(ids: Iterable[Id]) -> list[Id | None]:
    """The ids of a clip's frames in order, None for a missing frame.

    Numbers are sorted, names are in natural order (`2.jpg` before `10.jpg`). Missing frames are inserted between the
    first and the last id if the ids number the frames: whole numbers, or names that differ in one number only; most of
    them one step apart, the others a multiple of it. Ids of a database, such as 139, 285 and 632, do not.

    Raises: TypeError for ids that are neither all numbers nor all names.
    """
    given = set(ids)
    if not (all(isinstance(one, str) for one in given) or all(isinstance(one, int | float) for one in given)):
        raise TypeError("image_id is a number in all entries, or a name in all")
    ordered: list[Id] = sorted(given, key=lambda one: [*natural_key(one), one] if isinstance(one, str) else [one])
    numbers = _numbers(ordered)
    steps = [after - before for before, after in pairwise(numbers)]
    if not steps:
        return list(ordered)
    usual, times = Counter(steps).most_common(1)[0]
    total = sum(steps) // max(usual, 1) + 1
    if usual < 1 or 2 * times <= len(steps) or any(step % usual for step in steps) or total > _LONGEST * len(ordered):
        return list(ordered)
    frames: list[Id | None] = [None] * total
    for number, one in zip(numbers, ordered, strict=True):
        frames[(number - numbers[0]) // usual] = one
    return frames


def _numbers(ids: list[Id]) -> list[int]:
    """The ids as frame numbers, or the number in which names differ; empty if there is no such number."""
    if not all(isinstance(one, str) for one in ids):
        whole = all(isinstance(one, int) or float(one).is_integer() for one in ids)
        return [int(one) for one in ids] if whole else []
    names = [natural_key(str(one)) for one in ids]
    if len({len(name) for name in names}) > 1:
        return []
    differing = [parts for parts in zip(*names, strict=True) if len(set(parts)) > 1]
    if len(differing) != 1:
        return []
    return [part for part in differing[0] if isinstance(part, int)]
