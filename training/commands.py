"""Common to the trainer's commands: a parser with one-line errors, and exit codes for exceptions."""

import argparse
import logging
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from contextanyone_core.cli.streams import steady_streams
from contextanyone_core.errors import ContextAnyoneError, InputError
from training.stopping import TrainingStopped


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line."""
        self.exit(2, f"{self.prog}: {message}\n")


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Run a command that may return the signal that ended it, and return the process's exit code.

    0 done, 1 training, disk or memory failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM. The last four end with one line.
    An output that is closed, or whose reader has left, ends nothing.
    """
    with steady_streams():
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        try:
            ended_by = command()
            sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stderr.write(f"{name}: interrupted\n")
            return 128 + signal.SIGINT
        except (ContextAnyoneError, OSError) as error:
            sys.stderr.write(f"{name}: {' '.join(_said(error).split())}\n")
            return 1 if isinstance(error, TrainingStopped | OSError) else 2
        except Exception as error:
            if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
                raise  # a bug, which shows its traceback
            less = 'docs/TRAINING.md, "Out of memory", has what needs less'
            sys.stderr.write(f"{name}: out of memory: {' '.join(str(error).split()) or 'of this machine'} ({less})\n")
            return 1
        return 0 if ended_by is None else 128 + ended_by


def output_folder(option: str, path: Path) -> Path:
    """Make the folder that an option names. Raises InputError where it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # without a name: another command may be asking the same
            pass
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written to: {error.strerror}.") from None
    return path


def refuse_output_file(option: str, path: Path) -> None:
    """Raise InputError where no file can be written at the path that an option names."""
    if path.is_dir():
        raise InputError(f"{option} is {path}, which is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise InputError(f"{option} is {path}, but there is no folder {path.parent}.")


def _said(error: Exception) -> str:
    """The text of an error; of a system error without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}."
    return str(error)
