"""Robust standard output and error: closed streams, full disks, and pipes whose reader has ended."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def steady_streams() -> Iterator[None]:
    """Replace both streams by UTF-8 ones that stay writable.

    Output to a closed stream, or to a pipe whose reader has ended (`| head`), is discarded, and the command goes on.
    Other write errors are ignored on stderr and raise OSError on stdout.
    """
    before = sys.stdout, sys.stderr
    _take_low_descriptors()
    sys.stdout = _steady(sys.stdout, sys.__stdout__, "surrogateescape", errors_raise=True)  # a name may be no UTF-8
    sys.stderr = _steady(sys.stderr, sys.__stderr__, "backslashreplace", errors_raise=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _take_low_descriptors() -> None:
    """Open the null device in place of closed streams; otherwise the next file would take their descriptors."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _steady(stream: TextIO | None, own: TextIO | None, errors: str, *, errors_raise: bool) -> TextIO:
    if stream is None:
        return io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8", errors=errors)
    if stream is own and isinstance(stream, io.TextIOWrapper) and _is_file(stream):
        stream.flush()
        raw = _Steady(stream.fileno(), errors_raise=errors_raise)
        buffered = io.BufferedWriter(raw)
        by_line = stream.line_buffering or stream.write_through  # the latter under PYTHONUNBUFFERED and `python -u`
        return io.TextIOWrapper(buffered, encoding="utf-8", errors=errors, line_buffering=by_line)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors=errors)
    return stream


def _is_file(stream: io.TextIOWrapper) -> bool:
    """Whether it writes bytes to its descriptor. Windows' console takes characters; bytes it shows in a code page."""
    return isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO)


class _Steady(io.FileIO):
    """A file descriptor that is redirected to the null device once its reader has ended."""

    def __init__(self, descriptor: int, *, errors_raise: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._errors_raise = errors_raise

    def write(self, data: Any) -> int:
        """Write, or discard the data if there is no reader."""
        try:
            return super().write(data)
        except OSError as error:
            no_reader = isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL  # the latter on Windows
            if self._errors_raise and not no_reader:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes
