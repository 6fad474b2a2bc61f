"""Where videos come from: a folder of files, or the character world rendered on demand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Protocol

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from data_pipeline.rows import Row, file_sha256
from data_pipeline.world_sources import WorldSet, write_source

ENDINGS = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"}


class Sources(Protocol):
    """A named list of videos."""

    def names(self) -> list[str]:
        """Every source, sorted; usable as names of files."""

    def row(self, name: str, root: Path) -> Row:
        """The source as a row of the whole video; its file is there afterwards. `root` is the output folder."""


@dataclass(frozen=True)
class FolderSources:
    """The videos of a folder, by their path with `/` as `__`, but for those removed from the output folder."""

    folder: Path
    removed: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """Every video of the folder; files whose name begins with a dot are none (some systems put them beside each).

        Raises:
            InputError: there is none, or no such folder, or two would have one name.
        """
        if not self.folder.is_dir():
            raise InputError(f"sources.folder is {self.folder}, which is no folder; name one that holds videos.")
        found = [path for path in self.folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
        paths = sorted(path.relative_to(self.folder).as_posix() for path in found if not path.name.startswith("."))
        names: dict[str, str] = {}
        for path in paths:
            other = names.setdefault(path.replace("/", "__"), path)
            if other != path:
                raise InputError(f"sources.folder {self.folder}: {other} and {path} would have one name; rename one.")
        if not names:
            raise InputError(f"sources.folder {self.folder} holds no video ({', '.join(sorted(ENDINGS))}).")
        return sorted(names.keys() - self.removed)

    def row(self, name: str, root: Path) -> Row:
        """The video as a row; a link below the output folder leads to the file."""
        path = _named(self.folder, name.split("__")).resolve()
        link = root / "sources" / name
        if not link.is_symlink() or link.readlink() != path:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        return Row(source=name, sha256=file_sha256(path), video=f"sources/{name}")


def _named(folder: Path, parts: list[str]) -> Path:
    """The file whose path has these parts, some joined by `__` in one name; the folder is not listed.

    Raises: FileNotFoundError where there is none.
    """
    if (whole := folder / "__".join(parts)).is_file():
        return whole
    for count in range(1, len(parts)):
        inner = folder / "__".join(parts[:count])
        if inner.is_dir():
            try:
                return _named(inner, parts[count:])
            except FileNotFoundError:
                continue
    raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(folder / "__".join(parts)))


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
