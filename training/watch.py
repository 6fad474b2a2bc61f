"""Where a run is seen while it trains: log.jsonl, trackers, progress; in the first of several processes only."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training.config import TrainConfig
from training.log import ProgressDisplay, StepLog
from training.trackers import Trackers


class Watch:
    """A context that hands every step to the log, the trackers and the terminal.

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
        """Keep and show a finished step."""
        if self._active:
            self._log.write(record)
            self._trackers.step(record)
            self._display.advance(record["step"] + 1, record)

    def validation(self, found: dict[str, float], step: int) -> None:
        """Keep what a validation after so many steps has found, as a line of validation.jsonl."""
        if self._active:
            with StepLog(self._folder / "validation.jsonl") as log:
                log.write({"step": step, **found})
            self._trackers.step({"step": step - 1, **{f"validation/{name}": value for name, value in found.items()}})

    def samples(self, folder: Path, step: int) -> None:
        """Keep the pictures of a folder of samples."""
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
