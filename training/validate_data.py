"""Check a manifest and everything that it names: `python training/validate_data.py data/train.jsonl`.

Says what is kept and what is dropped, by reason, and which buckets the clips fall into.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from dataclasses import asdict

from contextanyone_core.errors import InputError
from training.commands import Parser, refuse_output_file, run_command


def validate(manifest: Path, config: Path | None, dropped: Path | None) -> None:
    """Check every row, write the account to the standard output and, where asked, the drops as JSON lines.

    Raises:
        InputError: the manifest cannot be read, or no row of it can be used.
    """
    from contextanyone_core.config import ContextAnyoneConfig  # late, with all that follows: --help shall be quick
    from training.config import data_settings
    from training.data.buckets import BucketSettings, plan_buckets
    from training.data.check import check_files, usage
    from training.data.manifest import drop_table, read_manifest, write_lines

    settings = BucketSettings() if config is None else data_settings(config).buckets
    if dropped is not None:
        refuse_output_file("--dropped", dropped)
    checked = check_files(read_manifest(manifest), settings, decode=True)
    sys.stdout.write(drop_table(len(checked.clips), checked.dropped))
    if dropped is not None:
        write_lines(dropped, (json.dumps(asdict(drop), ensure_ascii=False) for drop in checked.dropped))
    if not checked.clips:
        raise InputError(f"No row of {manifest} can be used.")
    model = ContextAnyoneConfig.wan_1_3b()
    buckets = [clip.bucket for clip in checked.clips]
    plan = plan_buckets(buckets, model, settings, clip_tokens=257)
    sys.stdout.write(f"\nBuckets, by the FLOPs of the 1.3B model:\n{plan.table()}\n")
    sys.stdout.writelines(f"{line}\n" for line in usage(checked.clips))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 where any row can be used, else 2."""
    parser = Parser(prog="validate_data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("manifest", type=Path, help="a JSONL file; docs/TRAINING.md has its columns")
    parser.add_argument("--config", type=Path, help="take the buckets from this configuration of a run")
    parser.add_argument("--dropped", type=Path, help="write the dropped rows here, one JSON object per line")
    arguments = parser.parse_args(argv)
    return run_command("validate_data.py", lambda: validate(arguments.manifest, arguments.config, arguments.dropped))


if __name__ == "__main__":
    sys.exit(main())
