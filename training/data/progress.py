"""How far a long piece of work is: a bar on a terminal, elsewhere a line now and then."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_LOG = logging.getLogger(__name__)
_EVERY = 30.0  # seconds between lines


class Progress:
    """Counts finished pieces of `total` and shows them, with the time that is left.

    Args:
        name: of the work. pieces: what they are called, plural.
    """

    def __init__(self, name: str, total: int, pieces: str) -> None:
        self._bar = tqdm(total=total, desc=name, unit=f" {pieces}", disable=not sys.stderr.isatty())
        self._name, self._total, self._pieces, self._done = name, total, pieces, 0
        self._began = self._shown = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count finished pieces."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and (now - self._shown >= _EVERY or self._done == self._total):
            self._shown, rate = now, self._done / max(now - self._began, 1e-9)
            left = tqdm.format_interval((self._total - self._done) / rate)
            _LOG.info(
                "%s: %d of %d, %.3g %s a second, %s left", self._name, self._done, self._total, rate, self._pieces, left
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
