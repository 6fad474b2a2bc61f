"""Logging of a run: log.jsonl, trackers and progress, in the first of several processes only."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training.config import TrainConfig
from training.log import ProgressDisplay, StepLog
from training.trackers import Trackers


class Watch:
    """A context that passes every step to the log, the trackers and the terminal.

    Args:
        start: steps done before. active: whether this process writes anything.
    """

    def __init__(self, config: TrainConfig, folder: Path, start: int, *, active: bool) -> None:
        self._active = active
        self._folder = folder
        if active:
            run = config.run
            self._log = StepLog(folder / "log.jsonl")
            self._trackers = Trackers(run.trackers, folder, config.to_dict(), start)
            self._display = ProgressDisplay(run.name, start, run.steps, run.log_every)

    def step(self, record: dict[str, Any]) -> None:
        """Log and display a finished step."""
        if self._active:
            self._log.write(record)
            self._trackers.step(record)
            self._display.advance(record["step"] + 1, record)

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
