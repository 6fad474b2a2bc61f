"""Files and folders that appear under their names only when they are whole.

What is written goes into a hidden folder beside its place, reaches the disk, and is renamed at the end. Its name is
random, so that processes of several hosts can write the same file; an error or an interrupt leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, ENDING = ".contextanyone-", ".part"
"""How the hidden folders are called; a process that is killed may leave one."""

_FILE_BITS = 0o666  # no file here is a program
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for want of room: no space, a quota, or the limit on a file's size."""
    return error.errno in _DISK_FULL


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder` to write in, removed at the end however that comes.

    Raises: OSError if it cannot be made.
    """
    hidden = folder / f"{PREFIX}{secrets.token_hex(8)}{ENDING}"
    try:  # the name is known before the folder is made, so that an interrupt in between leaves nothing
        _make(hidden)
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _make(hidden: Path) -> None:
    try:
        hidden.mkdir()
    except OSError as error:  # the name that the user knows is the folder's
        raise OSError(error.errno, error.strerror, str(hidden.parent)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes the name `path` when the block ends well.

    A file replaces a file. A folder replaces an empty folder only. Modes are those that the umask asks for.

    Raises: OSError if the disk is full or fails, or `path` cannot be replaced; what stood there before stays.
    """
    with whole_files(path) as folder:
        yield folder / path.name


@contextmanager
def whole_files(*paths: Path) -> Iterator[Path]:
    """A folder in which to write one file or folder by the name of each path; all take their places, or none does.

    Args:
        paths: in one folder, with different names.

    Raises: OSError as `whole_file`.
    """
    parent = paths[0].parent
    with staging(parent) as hidden:
        written, before = hidden / "written", hidden / "before"
        written.mkdir()
        before.mkdir()
        yield written
        mode = hidden.stat().st_mode & _FILE_BITS
        for path in paths:
            _finish(written / path.name, mode)
        _place(written, before, paths)
        sync(parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all.

    Raises: OSError if the disk is full or the folder cannot be written to.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if not path.is_dir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    elif os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of network file systems that cannot sync a folder
                raise
        finally:
            os.close(descriptor)


def _finish(path: Path, mode: int) -> None:
    """Sync what was written, give files the mode of the umask (some libraries write theirs as 0600)."""
    if path.is_dir():
        for inner in path.iterdir():
            _finish(inner, mode)
        sync(path)
        return
    sync(path)
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)


def _place(written: Path, before: Path, paths: tuple[Path, ...]) -> None:
    """Rename each to its place. What must make room moves into `before`; on an error everything goes back."""
    try:
        for path in paths:
            _make_room(path, written / path.name, before, last=path is paths[-1])
            (written / path.name).replace(path)
    except BaseException:
        for path in reversed(paths):  # the folders tell how far it came, also after an interrupt
            with suppress(OSError):
                if not (written / path.name).exists():
                    path.replace(written / path.name)
                if (before / path.name).exists():
                    (before / path.name).replace(path)
        raise


def _make_room(path: Path, new: Path, before: Path, *, last: bool) -> None:
    if path.is_dir():
        if not new.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if any(path.iterdir()):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        path.replace(before / path.name)
    elif path.exists() and not last:  # the last one is replaced by one step, after which nothing can fail
        path.replace(before / path.name)
