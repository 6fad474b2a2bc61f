"""What the trainer's commands share: a parser with one-line errors, and exceptions as exit codes."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from contextanyone_core.errors import ContextAnyoneError
from training.stopping import TrainingStopped


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line."""
        self.exit(2, f"{self.prog}: {message}\n")


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Run a command that may return the signal that ended it, and return the process's exit code.

    0 done, 1 the training or the disk failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM. The last four end with one line.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        ended_by = command()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ContextAnyoneError, OSError) as error:
        sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
        return 1 if isinstance(error, TrainingStopped | OSError) else 2
    return 0 if ended_by is None else 128 + ended_by
