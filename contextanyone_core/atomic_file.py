"""Atomic writing: files and folders appear under their names only when they are complete.

The content is written to a hidden folder beside its destination, synced to disk, and renamed at the end. The hidden
name is random, so that several processes can write the same file; an error or interrupt leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, ENDING = ".contextanyone-", ".part"
"""Prefix and suffix of the hidden folders; a killed process may leave one."""

_WINDOWS = sys.platform == "win32"
_FILE_BITS = 0o666  # without execute permission
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for lack of space: a full disk, a quota, or the limit on file size."""
    return error.errno in _DISK_FULL


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary hidden folder in `folder`, removed on exit in any case.

    Raises: OSError if it cannot be created.
    """
    hidden = folder / f"{PREFIX}{secrets.token_hex(8)}{ENDING}"
    try:  # chosen before the folder is created, so that an interrupt in between leaves nothing
        _make(hidden)
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _make(hidden: Path) -> None:
    try:
        hidden.mkdir()
    except OSError as error:  # the error names the folder that the user knows
        raise OSError(error.errno, error.strerror, str(hidden.parent)) from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give the error of a full disk, which names no file, the name of the file that the user knows."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error) and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path for a file or folder, which is renamed to `path` when the block ends without an error.

    A file replaces a file; a folder replaces an empty folder only. Permissions follow the umask.

    Raises: OSError if the disk is full or fails, or `path` cannot be replaced; existing files are kept.
    """
    with whole_files(path) as folder:
        yield folder / path.name


@contextmanager
def whole_files(*paths: Path) -> Iterator[Path]:
    """A temporary folder for one file or folder with the name of each path; all are moved to their paths, or none.

    Args:
        paths: in one folder, with different names.

    Raises: OSError as `whole_file`.
    """
    parent = paths[0].parent
    with staging(parent) as hidden:
        written, before = hidden / "written", hidden / "before"
        written.mkdir()
        before.mkdir()
        with _named(paths[0]):
            yield written
        mode = hidden.stat().st_mode & _FILE_BITS
        for path in paths:
            _finish(written / path.name, mode)
        _place(written, before, paths)
        sync(parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises: OSError if the disk is full or the folder cannot be written to.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def publish(hidden: Path, path: Path) -> None:
    """Give a complete folder, which several processes may have written, its name: synced, then renamed.

    Args:
        hidden: beside `path`. path: a folder that is there already is removed first.

    Raises: OSError if the disk fails.
    """
    _finish(hidden, hidden.stat().st_mode & _FILE_BITS)
    if path.exists():
        shutil.rmtree(path)
    hidden.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync a file, or a folder's directory entries, to disk."""
    if not path.is_dir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    elif os.name == "posix":  # other systems cannot open a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # from network file systems that cannot sync a folder
                raise
        finally:
            os.close(descriptor)


def _finish(path: Path, mode: int) -> None:
    """Sync the content, and set permissions by the umask (some libraries create files with 0600)."""
    if path.is_dir():
        for inner in path.iterdir():
            _finish(inner, mode)
        sync(path)
        return
    sync(path)
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)


def _place(written: Path, before: Path, paths: tuple[Path, ...]) -> None:
    """Rename each item to its place; existing ones are moved to `before`, and restored on an error."""
    try:
        for path in paths:
            _make_room(path, written / path.name, before, last=path is paths[-1])
            _take_place(written / path.name, path)
    except BaseException:
        for path in reversed(paths):  # the folders show which moves were done, also after an interrupt
            with suppress(OSError):
                if not (written / path.name).exists():
                    path.replace(written / path.name)
                if (before / path.name).exists():
                    (before / path.name).replace(path)
        raise


def _take_place(new: Path, path: Path) -> None:
    """Rename. An error names the file that the user knows, and on Windows what keeps it from being replaced."""
    try:
        new.replace(path)
    except OSError as error:
        open_there = _WINDOWS and isinstance(error, PermissionError) and path.exists()
        remedy = "; close the program that has it open, such as ComfyUI" if open_there else ""
        raise OSError(error.errno, f"{error.strerror}{remedy}", str(path)) from error


def _make_room(path: Path, new: Path, before: Path, *, last: bool) -> None:
    if path.is_dir():
        if not new.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if any(path.iterdir()):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        path.replace(before / path.name)
    elif path.exists() and not last:  # the last one is replaced in one step, after which nothing can fail
        path.replace(before / path.name)
