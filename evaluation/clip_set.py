"""The set of an evaluation: which clips every system makes. One JSON object a line.

    {"id": "042", "reference": "pictures/042.png", "first": "A woman.", "later": "The same woman is walking.",
     "seed": 7, "file": "042.mp4"}

| column | meaning |
|---|---|
| id | names the clip in every table; unique |
| reference | the reference picture, a path below the set's own folder |
| first, later | the two prompts; `first` may be left out |
| seed | of the noise; whole number |
| file | the clip's name in the folder of each system: a video file, or a folder of pictures; unique |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contextanyone_core.errors import InputError
from training.data.manifest import inside

_NEEDED = ("id", "reference", "later", "seed", "file")
_KNOWN = (*_NEEDED, "first")


@dataclass(frozen=True)
class Item:
    """One clip that every system makes."""

    id: str
    reference: Path
    first: str
    later: str
    seed: int
    file: str


def read_set(path: Path) -> list[Item]:
    """Read a set.

    Raises:
        InputError: the file cannot be read, or a line is no item; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a prompt may hold Unicode's own line separators
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--set {path} cannot be read: {error}.") from None
    items = [_item(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise InputError(f"--set {path} has no line; each is a JSON object with {', '.join(_NEEDED)}.")
    for column in ("id", "file"):
        seen: set[str] = set()
        for item in items:
            value = getattr(item, column)
            if value in seen:
                raise InputError(f"--set {path}: the {column} {value} occurs twice; each line is a clip of its own.")
            seen.add(value)
    return items


def read_folders(named: Sequence[str], items: Sequence[Item]) -> dict[str, Path]:
    """The folder of each system, from words of the form NAME=FOLDER, with a clip for every item.

    Raises:
        InputError: a word has another form, a name is given twice, or clips are missing.
    """
    folders: dict[str, Path] = {}
    for word in named:
        name, equals, folder = word.partition("=")
        if not equals or not name or not folder:
            raise InputError(f"--videos {word} is not of the form NAME=FOLDER.")
        if name in folders:
            raise InputError(f"--videos names {name} twice.")
        folders[name] = Path(folder)
        if not folders[name].is_dir():
            raise InputError(f"--videos {word}: there is no folder {folder}.")
        if missing := [item.file for item in items if not (folders[name] / item.file).exists()]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"--videos {word}: there is no {missing[0]}{more} in it; every system needs a clip for each line."
            )
    return folders


def _item(path: Path, number: int, line: str) -> Item:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"--set {path}, line {number} is not JSON.") from None
    if not isinstance(row, Mapping):
        raise InputError(f"--set {path}, line {number} is not a JSON object.")
    if missing := [name for name in _NEEDED if name not in row]:
        raise InputError(f"--set {path}, line {number} has no {', '.join(missing)}.")
    if unknown := sorted(row.keys() - set(_KNOWN)):
        raise InputError(
            f"--set {path}, line {number} has {unknown[0]}, which is no column; they are {', '.join(_KNOWN)}."
        )
    if not isinstance(row["seed"], int) or isinstance(row["seed"], bool):
        raise InputError(f"--set {path}, line {number}: seed is {row['seed']!r}; it must be a whole number.")
    texts = {name: row.get(name, "") for name in _KNOWN if name != "seed"}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise InputError(f"--set {path}, line {number}: {wrong[0]} is {texts[wrong[0]]!r}; it must be a text.")
    for name, start in (("reference", "the set's folder"), ("file", "each system's folder")):
        try:
            inside(texts[name])
        except ValueError:
            raise InputError(
                f"--set {path}, line {number}: {name} is {texts[name]!r}; it must be a path below {start}, with / "
                "between names."
            ) from None
    reference = path.parent / texts["reference"]
    if not reference.is_file():
        raise InputError(f"--set {path}, line {number}: there is no picture {reference}.")
    return Item(texts["id"], reference, texts["first"], texts["later"], row["seed"], texts["file"])
