"""What is known of files, found out once: SHA-256, size and times, and which frames decode.

    FOLDER/.checked/*.jsonl     facts by path, size and time of change; written whole, by any number of processes

A file that was changed since is examined again, and so is one that could not be read.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from contextanyone_core.pose.layouts import LAYOUTS
from training.data.manifest import write_lines
from training.data.media import MediaError, Probe, content_hash, probe, read_pose

_LOG = logging.getLogger(__name__)
FOLDER = ".checked"
_MANY = 32  # parts that are merged into one
_VERSION = 1  # raised when the reading of files changes (times, sizes, what decodes), so that older facts are not used

Stamp = tuple[int, int, int]
Range = tuple[int, int]


@dataclass(frozen=True)
class Pose:
    """A pose file: its frames and points, and what its metadata says; None if it states none."""

    frames: int
    points: int
    layout: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of one file: its hash, and what it is or why it cannot be used."""

    sha256: str
    probe: Probe | None = None
    pose: Pose | None = None
    error: str = ""


def examine(path: Path, between: Callable[[], None], *, as_pose: bool = False) -> Facts:
    """Hash a file and read its header, or a pose; `between` is called in between and may end it by raising.

    Raises:
        MissingDependencyError: it is a video file, and PyAV is not installed.
    """
    try:
        digest = content_hash(path, between)
    except OSError as error:
        return Facts("", error=f"{path} cannot be read ({error.strerror}).")
    try:
        if as_pose:
            return Facts(digest, pose=_pose(path))
        return Facts(digest, probe=probe(path))
    except (MediaError, OSError) as error:
        return Facts(digest, error=str(error))


def _pose(path: Path) -> Pose:
    frames, points, values = read_pose(path).shape
    try:
        with safe_open(path, framework="np") as file:
            said: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise MediaError(f"{path} cannot be read as safetensors ({error}).") from None
    if "layout" not in said:
        return Pose(frames, points)
    if values != 3:
        raise MediaError(f"{path} has {values} values for each point; with a layout it needs 3: x, y and score.")
    if LAYOUTS.get(said["layout"]) != points:
        known = ", ".join(f"{name} of {count}" for name, count in LAYOUTS.items())
        raise MediaError(f"{path} has {points} points in the layout {said['layout']!r}; known are {known}.")
    try:
        width, height, rate = int(said["width"]), int(said["height"]), float(said["fps"])
    except (KeyError, ValueError):
        raise MediaError(f"{path} must say width, height and fps beside its layout, as numbers.") from None
    if min(width, height, rate) <= 0:
        raise MediaError(f"{path} says width {width}, height {height} and fps {rate:g}; they must be above 0.")
    return Pose(frames, points, said["layout"], width, height)


class FactStore:
    """The facts of the files below a folder. Paths are relative to it, with / between names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._facts: dict[str, tuple[Stamp, dict[str, Any]]] = {}  # as written: times of many files take gigabytes
        self._at_hand = lru_cache(maxsize=64)(self._unpacked)
        self._decoded: dict[str, tuple[Stamp, dict[Range, str]]] = {}
        self._stamps: dict[str, Stamp | None] = {}
        self._read: set[str] = set()
        self._new: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have written since, and look at the files' sizes and times anew."""
        self._stamps.clear()
        for path in sorted((self.folder / FOLDER).glob("*.jsonl")):
            if path.name not in self._read:
                self._read.add(path.name)
                self._read_part(path)

    def stamp(self, name: str) -> Stamp | None:
        """Size, time of change and number of files of a path; None where there is nothing."""
        if name not in self._stamps:
            self._stamps[name] = _stamp(self.folder / name)
        return self._stamps[name]

    def get(self, name: str) -> Facts | None:
        """What is known of a path as it is now."""
        stamp, _ = self._facts.get(name, (None, None))
        return self._at_hand(name, stamp) if stamp is not None and stamp == self.stamp(name) else None

    def _unpacked(self, name: str, _: Stamp) -> Facts:
        return _facts_of_data(self._facts[name][1])

    def decoded(self, name: str) -> dict[Range, str]:
        """Ranges of frames (start, stop) that were decoded, each with what was wrong, "" for nothing."""
        stamp, ranges = self._decoded.get(name, (None, {}))
        return ranges if stamp is not None and stamp == self.stamp(name) else {}

    def add(self, name: str, facts: Facts) -> None:
        """Remember the facts of a path."""
        if (stamp := self.stamp(name)) is not None:
            self._facts[name] = (stamp, _facts_as_data(facts))
            self._at_hand.cache_clear()
            self._new.append(_line(name, stamp, self._facts[name][1]))

    def add_decoded(self, name: str, found: Range, error: str) -> None:
        """Remember that a range of frames was decoded."""
        if (stamp := self.stamp(name)) is not None:
            self._decoded[name] = (stamp, self.decoded(name) | {found: error})
            self._new.append(_line(name, stamp, {"frames": found, "error": error}))

    def publish(self) -> None:
        """Write what is new, for other processes and other times; a folder that cannot be written to is no error."""
        if not self._new:
            return
        try:
            self._write(self._new)
        except OSError as error:
            _LOG.warning("%s cannot be written (%s): files are checked anew next time.", self.folder, error.strerror)
        self._new = []

    def merge(self) -> None:
        """Make one part of many, where there are many."""
        if len(self._read) < _MANY:
            return
        old = set(self._read)
        lines = [_line(name, stamp, data) for name, (stamp, data) in self._facts.items()]
        for name, (stamp, ranges) in self._decoded.items():
            lines += [_line(name, stamp, {"frames": frames, "error": error}) for frames, error in ranges.items()]
        try:
            self._write(lines)
            for name in old:
                (self.folder / FOLDER / name).unlink(missing_ok=True)
        except OSError:
            return  # the parts stay as they are
        self._read -= old

    def _write(self, lines: list[str]) -> None:
        folder = self.folder / FOLDER
        folder.mkdir(exist_ok=True)
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"  # read in the order of writing
        write_lines(folder / name, lines)
        self._read.add(name)

    def _read_part(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return  # merged into another just now, or damaged: what it held is found out again
        for line in lines:
            try:
                data = json.loads(line)
                name, stamp = data["path"], tuple(data["stamp"])
                if data["version"] != _VERSION:
                    continue
                if "frames" in data:
                    known, ranges = self._decoded.get(name, (stamp, dict[Range, str]()))
                    ranges = ranges if known == stamp else {}
                    self._decoded[name] = (stamp, ranges | {tuple(data["frames"]): data["error"]})
                else:
                    self._facts[name] = (
                        stamp,
                        {key: data[key] for key in data if key not in ("path", "stamp", "version")},
                    )
            except (ValueError, KeyError, TypeError):
                continue


def _line(name: str, stamp: Stamp, data: dict[str, Any]) -> str:
    return json.dumps({"version": _VERSION, "path": name, "stamp": stamp, **data})


def _stamp(path: Path) -> Stamp | None:
    try:
        state = path.stat()
        if not path.is_dir():
            return state.st_size, state.st_mtime_ns, 1
        states = [entry.stat() for entry in os.scandir(path)]
    except (OSError, ValueError):
        return None
    return sum(s.st_size for s in states), max([state.st_mtime_ns, *(s.st_mtime_ns for s in states)]), len(states)


def _facts_as_data(facts: Facts) -> dict[str, Any]:
    data: dict[str, Any] = {"sha256": facts.sha256, "error": facts.error}
    if facts.probe is not None:
        packed = base64.b85encode(zlib.compress(np.asarray(facts.probe.times, np.float64).tobytes())).decode()
        data["probe"] = [facts.probe.width, facts.probe.height, packed]
    if facts.pose is not None:
        data["pose"] = [*vars(facts.pose).values()]
    return data


def _facts_of_data(data: dict[str, Any]) -> Facts:
    found, pose = None, None
    if "probe" in data:
        width, height, packed = data["probe"]
        times = np.frombuffer(zlib.decompress(base64.b85decode(packed)), np.float64)
        found = Probe(times.tolist(), width, height)
    if "pose" in data:
        pose = Pose(*data["pose"])
    return Facts(data["sha256"], found, pose, data["error"])
