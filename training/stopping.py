"""When a run ends or saves before its last step: signals, the time limit, the file `save`, ten non-finite steps."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from contextanyone_core.errors import ContextAnyoneError

if TYPE_CHECKING:
    from training.distributed import World


class TrainingStopped(ContextAnyoneError):  # noqa: N818  # an outcome, not an error of the program
    """Ten steps in a row were not finite, or another process is gone or could not save."""


class _Interrupted(BaseException):
    """A signal arrived during work that may be interrupted."""


_LOST = re.compile(r"Connection (closed|reset)|Broken pipe|Socket|gloo|NCCL|remote process", re.IGNORECASE)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raise TrainingStopped where a message between processes fails, as one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist  # late: a command's --help shall be quick

        if not (dist.is_initialized() and _LOST.search(str(error))):
            raise
        raise TrainingStopped(
            "Another process of this run has ended, or cannot be reached; its own output has the reason. The last "
            "checkpoint is complete; the same command resumes the run."
        ) from None


class Stop:
    """Signals and the time limit of a run. A second Ctrl-C does not wait for the end of the step."""

    def __init__(self, max_minutes: float | None) -> None:
        self.signal: int | None = None
        self._may_cut = False
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def asked(self) -> bool:
        """Return whether the loop must end after the current step."""
        return self.signal is not None or (self._deadline is not None and time.monotonic() >= self._deadline)

    def agreed(self, world: World) -> int | None:
        """The signal that any process has received, the same in all processes; None if there was none."""
        terminated, interrupted = world.any(self.signal == signal.SIGTERM, self.signal == signal.SIGINT)
        return signal.SIGTERM if terminated else signal.SIGINT if interrupted else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record SIGINT and SIGTERM instead of ending the process."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def may_cut(self) -> Iterator[None]:
        """A signal interrupts the body at once: for work that changes no state, such as sampling."""
        try:
            self._may_cut = self.signal is None
            yield
        except _Interrupted:
            pass
        finally:
            self._may_cut = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
        if self._may_cut:
            self._may_cut = False
            raise _Interrupted


def save_asked(folder: Path) -> bool:
    """Return whether the file `save` exists in the run's folder (`touch DIR/save`), and remove it."""
    file = folder / "save"
    if not file.exists():
        return False
    file.unlink(missing_ok=True)
    return True
