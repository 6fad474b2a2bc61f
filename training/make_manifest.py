"""Make a manifest of a folder of clips: `python training/make_manifest.py data/clips --out data/train.jsonl`.

Captions, reference pictures and masks are found by name, long clips are cut into windows, sources are split into
training and validation; docs/TRAINING_DATA.md has the names. Ends with the table of validate_data.py and the next
command.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.commands import Parser, refuse_output_file, run_command
from training.stopping import Stop
from training.validate_data import validate

FULL_SIZE = Path("training/configs/contextanyone_1.3b.yaml")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError(text)
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 where any row can be used, else 2."""
    parser = Parser(prog="make_manifest.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="the folder with the clips")
    parser.add_argument("--out", type=Path, required=True, help="the manifest to write: in that folder, or above it")
    parser.add_argument(
        "--reference",
        choices=("name", "self"),
        default="name",
        help="pictures by name (default), or another moment of the same clip, cut to the person where it has a mask",
    )
    parser.add_argument("--license", default="unknown", help="of clips whose caption or table states none")
    parser.add_argument("--val", type=_share, default=0.05, help="share of the sources in the split val (0.05)")
    parser.add_argument("--config", type=Path, help="take the buckets from this configuration of a run")
    given = parser.parse_args(argv)

    def command() -> int | None:
        from training.config import data_settings  # late, with all that follows: --help shall be quick
        from training.data.buckets import BucketSettings
        from training.data.from_folder import ManifestSettings, make_manifest
        from training.data.work import Share, Stopped

        refuse_output_file("--out", given.out)
        buckets = BucketSettings() if given.config is None else data_settings(given.config).buckets
        settings = ManifestSettings(
            given.folder, given.out, given.reference == "self", given.license, buckets, given.val
        )
        stop = Stop(None)
        with stop.listening():
            try:
                sys.stdout.write(make_manifest(settings, Share(asked=stop.asked)))
            except Stopped:
                return stop.signal
        ended_by = validate(given.out, buckets, None)
        if ended_by is None:
            place = f"--config {given.config or FULL_SIZE} --set part.data.manifest={given.out}"
            sys.stdout.write(f"\nNext: python training/cache.py {place}\n")
        return ended_by

    return run_command("make_manifest.py", command)


if __name__ == "__main__":
    sys.exit(main())
