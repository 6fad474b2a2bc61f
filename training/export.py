"""Export a run's newest checkpoint, also while it trains: `python training/export.py RUN --out FOLDER`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from training.commands import Parser, run_command
from training.config import load_config
from training.state import CheckpointStore
from training.trainer import build_trainer


def export_run(run: Path, out: Path) -> None:
    """Write the shipped files of a run's newest checkpoint (EMA weights) into out. The run is only read.

    Raises:
        InputError: run is not the folder of a run, or has no checkpoint yet.
    """
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is not the folder of a run: it has no config.yaml.")
    checkpoint = CheckpointStore(run / "checkpoints").load_latest()
    if checkpoint is None:
        raise InputError(f"{run} has no checkpoint yet.")
    build_trainer(load_config(run / "config.yaml"), checkpoint).export(out)
    sys.stdout.write(f"{out}: step {checkpoint.progress.step}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="export.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/miniature-vae")
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported files")
    arguments = parser.parse_args(argv)
    return run_command("export.py", lambda: export_run(arguments.run, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
