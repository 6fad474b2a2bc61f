"""The clips that a command requests, a safe file name for each, and the share of this process.

Prompts come from the options or from a JSONL file; rank and number of processes from the launcher's environment.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..media.video_io import contact_path, ending_of
from .parsing import MAX_SEED, prompt_text

KEYS = ("first", "later", "out", "seed")
_MAX_PROCESSES = 1_000_000
_SHOWN = 80  # maximum characters of a value in a message


@dataclass(frozen=True)
class Clip:
    """One video to make: its two prompts (either may be empty), its seed and its output path."""

    first: str
    later: str
    seed: int
    out: Path


def clips_from_options(first: str | None, laters: Sequence[str], seed: int, out: Path) -> list[Clip]:
    """One clip per `--later` prompt; several are numbered: out-1.mp4, out-2.mp4.

    Raises: InputError if there is no prompt.
    """
    if first is None and not laters:
        raise InputError("there is no prompt; describe the picture with --first, what happens with --later, or both.")
    if len(laters) < 2:
        return [Clip(first or "", "".join(laters), seed, out)]
    ending = out.suffix if ending_of(out) else ""
    names = [out.with_name(f"{out.name.removesuffix(ending)}-{index}{ending}") for index in range(1, len(laters) + 1)]
    return [Clip(first or "", later, seed, name) for later, name in zip(laters, names, strict=True)]


def clips_from_file(file: Path, first: str | None, seed: int, folder: Path) -> list[Clip]:
    """One clip per line {"first", "later", "out"?, "seed"?} of a JSONL file, all inside `folder`.

    The options' `first` and `seed` are the defaults of a line; file names default to clip-001.mp4 and so on.

    Raises: InputError, with the line number, for an invalid line or a name that would leave the folder.
    """
    if not folder.is_dir():
        raise InputError(f"--out {folder} is no folder; with --prompts give an existing folder for the clips.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {file} cannot be read: {error}.") from error
    clips: list[Clip] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removeprefix("\ufeff")  # byte order mark in a concatenated file
        if line.strip():
            try:
                name = f"clip-{len(clips) + 1:03d}.mp4"
                clips.append(_clip(_parse(line), Clip(first or "", "", seed, folder / name)))
            except (InputError, argparse.ArgumentTypeError) as error:
                raise InputError(f"{file}, line {number}: {error}") from error
    if not clips:
        raise InputError(f'--prompts {file} has no lines; each is an object such as {{"first": ..., "later": ...}}.')
    return clips


def refuse_collisions(clips: Sequence[Clip], read: Sequence[Path]) -> None:
    """Check that no clip or contact sheet replaces another one of this run, or a file that the run reads.

    Names that differ only in case count as equal, as on macOS and Windows.

    Raises: InputError naming the path.
    """
    taken = {_place(path) for path in read}
    for clip in clips:
        for path in (clip.out, contact_path(clip.out)):
            if _place(path) in taken:
                raise InputError(f"{path} would be written over a file of this run; give another name.")
            taken.add(_place(path))


def refuse_output_among(out: Path, frames: Sequence[Path | None]) -> None:
    """Refuse an output in a folder of frames that is read: the next run would take it for one of them.

    Raises: InputError naming both.
    """
    for path in frames:
        if path is not None and path.is_dir() and out.parent.resolve() == path.resolve():
            raise InputError(f"{out} would come among the files of {path}, which is read; give another folder.")


@dataclass(frozen=True)
class Process:
    """One of several processes that run the same command.

    Attributes:
        rank: index of the process, from 0.
        count: number of processes.
        local_rank: index on this machine, from 0; None if the launcher does not set it.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    def share(self, clips: Sequence[Clip]) -> list[Clip]:
        """Every `count`-th clip, starting at the `rank`-th.

        The share does not depend on which clips are finished, so the processes need not communicate, and together they
        make each clip exactly once.
        """
        return list(clips[self.rank :: self.count])

    def device(self, name: str) -> str:
        """The device for this process: `cuda` becomes the GPU of the local rank, other names do not change."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.local_rank is not None else name


def this_process(environment: Mapping[str, str]) -> Process:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without them there is a single process.

    Raises: InputError if only one of the first two is set, or a value is not a valid number.
    """
    rank, count = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None and count is None:
        return Process()
    if rank is None or count is None:
        given, missing = ("WORLD_SIZE", "RANK") if rank is None else ("RANK", "WORLD_SIZE")
        raise InputError(
            f"{given} is set in the environment and {missing} is not; set both, or neither for one process."
        )
    processes = _number("WORLD_SIZE", count, 1, _MAX_PROCESSES)
    local = environment.get("LOCAL_RANK")
    return Process(
        _number("RANK", rank, 0, processes - 1),
        processes,
        None if local is None else _number("LOCAL_RANK", local, 0, processes - 1),
    )


def _place(path: Path) -> str:
    return os.path.realpath(path).casefold()


def _parse(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise InputError('an object such as {"first": ..., "later": ...} is needed.')
    for key in values:
        if key not in KEYS:
            raise InputError(f"{_shown(key)} is unknown; known are {', '.join(KEYS)}.{did_you_mean(key, KEYS)}")
    return values


def _clip(values: Mapping[str, Any], default: Clip) -> Clip:
    texts = {key: _text(key, values[key]) for key in ("first", "later", "out") if key in values}
    first, later = texts.get("first", default.first), texts.get("later", "")
    prompt_text(first + later)
    for key in ("first", "later"):
        if key in texts:
            prompt_text(texts[key])
    seed = values.get("seed", default.seed)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {_shown(seed)}; a whole number from 0 to {MAX_SEED} is needed.")
    out = default.out.parent / _plain_name(texts["out"]) if "out" in texts else default.out
    return Clip(first, later, seed, out)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} is {_shown(value)}; a text is needed.")
    return value


def _plain_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in "/\\:" or not c.isprintable() for c in name):
        raise InputError(f"out is {_shown(name)}; a plain file name such as beach.mp4 is needed, without folders.")
    return name


def _number(name: str, text: str, low: int, high: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not low <= number <= high:
        raise InputError(f"{name} is {text[:40]!r} in the environment; a whole number from {low} to {high} is needed.")
    return number


def _shown(value: object) -> str:
    """A short form of a value for messages; a deeply nested one can exceed Python's recursion limit."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
