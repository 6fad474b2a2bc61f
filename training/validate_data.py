"""Check a manifest and everything that it names: `python training/validate_data.py data/train.jsonl`.

Reports what is kept and what is dropped, by reason, and which buckets the clips fall into. Processes share the work
where RANK and WORLD_SIZE are set, as by torchrun; the last one to end reports.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from dataclasses import asdict

from contextanyone_core.errors import InputError
from training.commands import Parser, refuse_output_file, run_command
from training.stopping import Stop

if TYPE_CHECKING:
    from training.data.buckets import BucketSettings


def validate(manifest: Path, settings: BucketSettings, dropped: Path | None) -> int | None:
    """Check every row, write the report and, if requested, the drops as JSON lines. Returns the signal that ended it.

    Raises:
        InputError: the manifest cannot be read, or no row of it can be used.
    """
    from training.data.account import account  # late, with all that follows: --help shall be quick
    from training.data.check import check_shared
    from training.data.manifest import read_manifest, write_lines
    from training.data.work import Stopped, job_share

    if dropped is not None:
        refuse_output_file("--dropped", dropped)
    rows, stop = read_manifest(manifest), Stop(None)
    with stop.listening():
        try:
            checked = check_shared(rows, settings, job_share(stop.asked))
        except Stopped:
            return stop.signal
    if checked is None:
        sys.stdout.write("This process is done; others are still checking their share.\n")
        return None
    sys.stdout.write(account(checked, settings))
    if dropped is not None:
        write_lines(dropped, (json.dumps(asdict(drop), ensure_ascii=False) for drop in checked.dropped))
    if not checked.clips:
        raise InputError(f"No row of {manifest} can be used.")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 where any row can be used, else 2."""
    parser = Parser(prog="validate_data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("manifest", type=Path, help="a JSONL file; docs/TRAINING_DATA.md has its columns")
    parser.add_argument("--config", type=Path, help="take the buckets from this configuration of a run")
    parser.add_argument("--dropped", type=Path, help="write the dropped rows here, one JSON object per line")
    arguments = parser.parse_args(argv)

    def command() -> int | None:
        from training.config import data_settings
        from training.data.buckets import BucketSettings

        settings = BucketSettings() if arguments.config is None else data_settings(arguments.config).buckets
        return validate(arguments.manifest, settings, arguments.dropped)

    return run_command("validate_data.py", command)


if __name__ == "__main__":
    sys.exit(main())
