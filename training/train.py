"""Train a part: `python training/train.py --config training/configs/miniature/vae.yaml [--set a.b=c ...]`."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import ContextAnyoneError
from training.config import load_config, presets
from training.loop import TrainingStopped, train


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the training failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    parser = _Parser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="a YAML file, such as training/configs/miniature/vae.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="run.steps=100")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments.config is None:
        listed = "".join(f"  {path}\n" for path in _relative_presets())
        sys.stdout.write(f"Choose a configuration with --config FILE:\n{listed}")
        return 2
    try:
        ended_by = train(load_config(arguments.config, arguments.set))
    except TrainingStopped as error:
        return _fail(error, 1)
    except ContextAnyoneError as error:
        return _fail(error, 2)
    except OSError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0 if ended_by is None else 128 + ended_by


def _relative_presets() -> list[Path]:
    here = Path.cwd()
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in presets()]


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"train.py: {' '.join(str(error).split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
