"""Several people in a clip: tracking them from frame to frame, and choosing one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .sequence import BODY, SEEN, WHOLE, Points


def choose_person(frames: list[list[Points]], person: int | None, name: str, choose: str) -> Points:
    """One person's points in every frame, (T, 130, 3), zero where the person is missing.

    People are tracked by position, independent of their order within a frame, and numbered from 1 as they appear.

    Args:
        frames: the people in each frame, each (130, 3) in pixels.
        person: number of the person; None if there is only one.
        name: name of the file, for messages.
        choose: how to choose a person, for messages.

    Raises: InputError if there is nobody, or several people and `person` is None, or `person` does not exist.
    """
    tracks = follow(frames)
    if not tracks:
        raise InputError(f"{name} shows nobody: no point of a body has a score above {SEEN:g} in any of its frames.")
    if person is None and len(tracks) > 1:
        raise InputError(f"{name} shows {len(tracks)} people ({_places(tracks)}); {choose}.")
    number = 1 if person is None else person
    if not 1 <= number <= len(tracks):
        raise InputError(f"person {number} is asked for; {name} shows {len(tracks)} ({_places(tracks)}).")
    return tracks[number - 1]


def follow(frames: list[list[Points]]) -> list[Points]:
    """The people of a clip, each (T, 130, 3), matched from frame to frame by the smallest mean distance."""
    tracks: list[Points] = []
    last: list[Points] = []  # last visible figure of each track
    for index, people in enumerate(frames):
        left = [person for person in people if (person[:BODY, 2] > SEEN).any()]
        pairs = sorted(
            (_distance(before, person), track, place)
            for track, before in enumerate(last)
            for place, person in enumerate(left)
        )
        owner: dict[int, int] = {}
        for _, track, place in pairs:
            if place not in owner and track not in owner.values():
                owner[place] = track
        for place, person in enumerate(left):
            track = owner.get(place, len(tracks))
            if track == len(tracks):
                tracks.append(np.zeros((len(frames), WHOLE, 3)))
                last.append(person)
            tracks[track][index], last[track] = person, person
    return tracks


def _seen(person: Points) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = person[:BODY, 2] > SEEN
    return seen


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


def _places(tracks: list[Points]) -> str:
    parts = []
    for number, track in enumerate(tracks[:8], start=1):
        shown = np.flatnonzero((track[:, :BODY, 2] > SEEN).any(axis=1))
        x, y = _middle(track[shown[0]])
        parts.append(f"{number} at x {x:.0f}, y {y:.0f} in frame {shown[0]}")
    return ", ".join(parts) + (", ..." if len(tracks) > len(parts) else "")
