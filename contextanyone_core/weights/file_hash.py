"""SHA-256 of large files, cached by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ..atomic_file import write_text

_KEPT = 1000  # most recent entries that are kept
_SETTLED = 2.0  # seconds; a file modified more recently may change again within the resolution of its modification time
_MAX_CACHE = 10_000_000  # bytes


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    Cached in `contextanyone/sha256.json` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`); recomputed
    when path, size or modification time differ. A cache that cannot be read or written is ignored. If several
    processes write at the same time, the last one wins, and the hashes of the others are computed again.

    Raises:
        OSError: the file cannot be read.
    """
    found = path.stat()
    key, seen = str(path.resolve()), [found.st_size, found.st_mtime_ns]
    cache = _cache_file()
    held = {} if cache is None else _read(cache).get(key, {})
    if isinstance(held, dict) and held.get("seen") == seen and isinstance(held.get("sha256"), str):
        return str(held["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    after = path.stat()
    unchanged = [after.st_size, after.st_mtime_ns] == seen and time.time() - after.st_mtime > _SETTLED
    if cache is not None and unchanged:
        _write(cache, key, {"seen": seen, "sha256": digest})
    return digest


def _cache_file() -> Path | None:
    """Path of the cache; None if the user has no home folder."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():  # the specification requires relative paths to be ignored
        return Path(named) / "contextanyone" / "sha256.json"
    try:
        return Path.home() / ".cache" / "contextanyone" / "sha256.json"
    except RuntimeError:
        return None


def _read(cache: Path) -> dict[str, object]:
    try:
        if not cache.is_file() or cache.stat().st_size > _MAX_CACHE:
            return {}
        content = json.loads(cache.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(cache: Path, key: str, entry: dict[str, object]) -> None:
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        held = _read(cache)
        held.pop(key, None)
        kept = dict([*held.items(), (key, entry)][-_KEPT:])
        write_text(cache, json.dumps(kept))
