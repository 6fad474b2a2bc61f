"""Several people in a clip: tracking them from frame to frame, and choosing one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .sequence import BODY, SEEN, WHOLE, Points

_FARTHEST = 1.5
"""How far away someone who was hidden for a while may appear to be the same person, in heights of the figure."""

_FEW, _LONG = 3, 16
"""A track of at most `_FEW` frames or points is a stray detection if another track has `_LONG` frames, one second."""


def choose_person(frames: list[list[Points]], person: int | None, name: str, choose: str) -> tuple[Points, str]:
    """One person's points in every frame, (T, 130, 3), zero where the person is missing, and a remark or "".

    People are tracked by position, independent of their order within a frame, and numbered from 1 as they appear. Stray
    detections are not counted if another person is seen for long; the remark names them.

    Args:
        frames: the people in each frame, each (130, 3) in pixels.
        person: number of the person; None if there is only one.
        name: name of the file, for messages.
        choose: how to choose a person, for messages.

    Raises: InputError if there is nobody, or several people and `person` is None, or `person` does not exist.
    """
    tracks, strays = _apart(follow(frames))
    if not tracks:
        raise InputError(f"{name} shows nobody: no point of a body has a score above {SEEN:g} in any of its frames.")
    if person is None and len(tracks) > 1:
        raise InputError(f"{name} shows {len(tracks)} people ({_places(tracks)}); {choose}.{_if_it_is_one(tracks)}")
    number = 1 if person is None else person
    if not 1 <= number <= len(tracks):
        raise InputError(f"person {number} is asked for; {name} shows {len(tracks)} ({_places(tracks)}).")
    ignored = f"{name} has stray detections, which are ignored ({_places(strays)})" if strays else ""
    return tracks[number - 1], ignored


def _apart(tracks: list[Points]) -> tuple[list[Points], list[Points]]:
    """The tracks of people, and stray ones: of few frames or points, where somebody is seen for a second or longer."""
    seen = [track[:, :BODY, 2] > SEEN for track in tracks]
    most = [int(one.sum(axis=1).max()) for one in seen]  # points in a frame
    frames = [int(one.any(axis=1).sum()) for one in seen]
    longest = max((count for count, points in zip(frames, most, strict=True) if points > _FEW), default=0)
    if longest < _LONG:
        return tracks, []
    stray = [min(count, points) <= _FEW for count, points in zip(frames, most, strict=True)]
    people, strays = ([one for one, odd in zip(tracks, stray, strict=True) if odd is which] for which in (False, True))
    return people, strays


def follow(frames: list[list[Points]]) -> list[Points]:
    """The people of a clip, each (T, 130, 3), matched from frame to frame by the smallest mean distance.

    A figure farther than its height from the last place of a person (`_FARTHEST` heights after an absence) starts a new
    track.
    """
    tracks: list[_Track] = []
    for index, people in enumerate(frames):
        left = [person for person in people if _seen(person).any()]
        pairs = sorted(
            (distance, number, place)
            for number, track in enumerate(tracks)
            for place, person in enumerate(left)
            if (distance := _distance(track.figure, person)) <= track.reach(index, person)
        )
        owner: dict[int, int] = {}
        for _, number, place in pairs:
            if place not in owner and number not in owner.values():
                owner[place] = number
        for place, person in enumerate(left):
            number = owner.get(place, len(tracks))
            if number == len(tracks):
                tracks.append(_Track(np.zeros((len(frames), WHOLE, 3))))
            tracks[number].add(index, person)
    return [track.points for track in tracks]


@dataclass
class _Track:
    """One person so far: points (T, 130, 3), the last frame that shows them, and their height in pixels."""

    points: Points
    last: int = 0
    height: float = 0.0

    @property
    def figure(self) -> Points:
        """The last visible figure, (130, 3)."""
        figure: Points = self.points[self.last]
        return figure

    def add(self, index: int, person: Points) -> None:
        """The person in a further frame."""
        self.points[index], self.last, self.height = person, index, max(self.height, _extent(person))

    def reach(self, index: int, person: Points) -> float:
        """Largest distance in pixels at which a figure is taken for this person; no limit after a single point."""
        height = max(self.height, _extent(person)) if self.height else np.inf
        return height * min(index - self.last, _FARTHEST)


def _seen(person: Points) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = person[:BODY, 2] > SEEN
    return seen


def _extent(person: Points) -> float:
    """The longer side of a figure's box, in pixels."""
    points = person[:BODY][_seen(person), :2]
    return float(np.ptp(points, axis=0).max()) if len(points) else 0.0


def _distance(one: Points, other: Points) -> float:
    """Mean distance of the points visible in both; if there are none, the distance of their centres."""
    both = _seen(one) & _seen(other)
    if both.any():
        gaps: NDArray[np.float64] = np.linalg.norm((one[:BODY] - other[:BODY])[both, :2], axis=1)
        return float(gaps.mean())
    return float(np.linalg.norm(_middle(one) - _middle(other)))


def _middle(person: Points) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = person[:BODY][_seen(person), :2].mean(axis=0)
    return middle


def _if_it_is_one(tracks: list[Points]) -> str:
    """What to do about one person who was lost at a cut or a jump; empty if several are seen at once."""
    shown = np.array([(track[:, :BODY, 2] > SEEN).any(axis=1) for track in tracks])
    if shown.sum(axis=0).max() > 1:
        return ""
    starts = ", ".join(str(int(frames.argmax())) for frames in shown[1:9])
    return f" They are never seen together: if it is one person, who jumps, cut the clip there (frame {starts})."


def _places(tracks: list[Points]) -> str:
    parts = []
    for number, track in enumerate(tracks[:8], start=1):
        shown = np.flatnonzero((track[:, :BODY, 2] > SEEN).any(axis=1))
        x, y = _middle(track[shown[0]])
        parts.append(f"{number} at x {x:.0f}, y {y:.0f} in frame {shown[0]}")
    return ", ".join(parts) + (", ..." if len(tracks) > len(parts) else "")
