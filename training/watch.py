"""Logging of a run: log.jsonl, trackers and progress, in the first of several processes only."""

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training.config import TrainConfig
from training.log import ProgressDisplay, StepLog
from training.trackers import Trackers

_LOG = logging.getLogger(__name__)
IDLE_STEPS = 10


class Watch:
    """A context that passes every step to the log, the trackers and the terminal.

    Args:
        start: steps done before. active: whether this process writes anything.
    """

    def __init__(self, config: TrainConfig, folder: Path, start: int, *, active: bool) -> None:
        self._active = active
        self._folder = folder
        self._idle = 0  # steps in a row whose gradients were all zero, or none
        if active:
            run = config.run
            self._log = StepLog(folder / "log.jsonl")
            self._trackers = Trackers(run.trackers, folder, config.to_dict(), start)
            self._display = ProgressDisplay(run.name, start, run.steps, run.log_every)

    def step(self, record: dict[str, Any]) -> None:
        """Log and display a finished step."""
        if self._active:
            self._warn_of_idle_steps(record)
            self._log.write(record)
            self._trackers.step(record)
            self._display.advance(record["step"] + 1, record)

    def _warn_of_idle_steps(self, record: dict[str, Any]) -> None:
        """Warn once of steps in a row that train nothing; a few are no fault, as where new parts alone are trained."""
        self._idle = self._idle + 1 if record["grad_norm"] == 0 else 0
        if self._idle == IDLE_STEPS:
            _LOG.warning(
                "%d steps in a row up to step %d had no gradient: nothing that is trained takes "
                "part in the loss. That is as asked only where part.train.thaw freezes all of it.",
                IDLE_STEPS,
                record["step"],
            )

    def validation(self, found: dict[str, float], step: int) -> None:
        """Log the result of a validation after this many steps, as a line of validation.jsonl."""
        if self._active:
            with StepLog(self._folder / "validation.jsonl") as log:
                log.write({"step": step, **found})
            self._trackers.step({"step": step - 1, **{f"validation/{name}": value for name, value in found.items()}})

    def samples(self, folder: Path, step: int) -> None:
        """Log the pictures in a folder of samples."""
        if self._active:
            self._trackers.samples(folder, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            with ExitStack() as stack:
                for inner in (self._log, self._trackers, self._display):
                    stack.push(inner)
