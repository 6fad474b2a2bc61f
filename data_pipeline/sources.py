"""Where videos come from: a folder of files, or the character world rendered on demand."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from errno import ENOENT
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol
from unicodedata import category

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from data_pipeline.rows import Row, digest, file_sha256
from data_pipeline.world_sources import WorldSet, write_source
from training.data.video import VIDEO_ENDINGS

_MOST_LETTERS = 180  # an id has the span too, and 200 at most
_MOST_BYTES = 240  # a file's name has 255 at most, and .jsonl or .json follows
_KEPT = 100  # bytes and letters of a name that is shortened
_NO_LETTERS = {"Cc", "Cs"}  # controls, a line's end among them; bytes that are no UTF-8
_SHORTENED = re.compile(r"-[0-9a-f]{16}\.[^.]+$")


class Sources(Protocol):
    """A named list of videos."""

    def names(self) -> list[str]:
        """Every source, sorted; usable as names of files."""

    def row(self, name: str, root: Path) -> Row:
        """The source as a row of the whole video; its file is there afterwards. `root` is the output folder."""


@dataclass(frozen=True)
class FolderSources:
    """The videos of a folder, but for those removed from the output folder.

    They are named by their path with `/` as `__`, shortened where that is too long.
    """

    folder: Path
    removed: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """Every video of the folder; files whose name begins with a dot are none (some systems put them beside each).

        Raises:
            InputError: there is none, or no such folder, or two would have one name.
        """
        if not self.folder.is_dir():
            raise InputError(f"sources.folder is {self.folder}, which is no folder; name one that holds videos.")
        names: dict[str, str] = {}
        for path in sorted(_videos(self.folder)):
            other = names.setdefault(_name_of(path), path)
            if other != path:
                raise InputError(f"sources.folder {self.folder}: {other} and {path} would have one name; rename one.")
        if not names:
            raise InputError(f"sources.folder {self.folder} holds no video ({', '.join(sorted(VIDEO_ENDINGS))}).")
        return sorted(names.keys() - self.removed)

    def row(self, name: str, root: Path) -> Row:
        """The video as a row; a link below the output folder leads to the file."""
        path = _path_of(self.folder, name).resolve()
        link = root / "sources" / name
        if not link.is_symlink() or link.readlink() != path:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            _link(link, path)
        return Row(source=name, sha256=file_sha256(path), video=f"sources/{name}")


def _link(link: Path, path: Path) -> None:
    """Make a link to a file; where there can be none (Windows, exFAT, some shares), a hard link, and else a copy."""
    try:
        link.symlink_to(path)
    except OSError:
        try:
            link.hardlink_to(path)
        except OSError:
            with whole_file(link) as beside:
                shutil.copyfile(path, beside)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".") and path.is_file()


def _videos(folder: Path) -> Iterator[str]:
    """The paths of a folder's videos, below it."""
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_video(path))


def _name_of(path: str) -> str:
    """A video's name by its path below the folder: with `__` for `/`, and shortened where that could be no file's name.

    A shortened name ends with a hash of the path, which tells it from all others.
    """
    name = path.replace("/", "__")
    usable = "".join("_" if one == "\\" or category(one) in _NO_LETTERS else one for one in name)
    if usable == name and len(name) <= _MOST_LETTERS and len(name.encode()) <= _MOST_BYTES:
        return name
    start = usable[:_KEPT].encode()[:_KEPT].decode(errors="ignore")
    return f"{start}-{digest(path)}{PurePosixPath(path).suffix}"


def _path_of(folder: Path, name: str) -> Path:
    """The video that has a name. Raises: FileNotFoundError where there is none."""
    found = _named(folder, name)
    if found is None and _SHORTENED.search(name):
        found = _shortened(folder).get(name)
    if found is None or not found.is_file():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(folder / name))
    return found


def _named(folder: Path, name: str) -> Path | None:
    """The video whose path is the name with some `__` as `/`; the folder is not listed."""
    if _is_video(folder / name):
        return folder / name
    for at in range(1, len(name) - 2):  # in a___b each place is possible: folders may begin and end with _
        if name.startswith("__", at) and (folder / name[:at]).is_dir():
            found = _named(folder / name[:at], name[at + 2 :])
            if found is not None:
                return found
    return None


@lru_cache(maxsize=1)
def _shortened(folder: Path) -> dict[str, Path]:
    """The videos of a folder whose names are shortened; listed once in a process."""
    names = ((_name_of(path), path) for path in _videos(folder))
    return {name: folder / path for name, path in names if _SHORTENED.search(name)}


@dataclass(frozen=True)
class WorldSources:
    """Rendered sources with planted faults; each is written below the output folder when it is first needed."""

    world: WorldSet
    removed: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """One name for each number of the set."""
        return [name for number in range(self.world.count) if (name := f"{number:06d}") not in self.removed]

    def row(self, name: str, root: Path) -> Row:
        """The rendered video as a row."""
        folder = root / "sources" / name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(folder) as beside:
                beside.mkdir()
                write_source(beside, self.world, int(name))
        video = folder / "video.mp4"
        return Row(source=name, sha256=file_sha256(video), video=f"sources/{name}/video.mp4")
