"""Measure what the knobs of a generation do: the gap, Emphasize-Attention's factor, the scales of guidance.

    python evaluation/knobs.py --out DIR --count 32

DIR gets the numbers, the table and the plot of each knob (gap.json, gap.md and gap.png, and so on), of the shipped
weights on test characters of the world. Every measured batch of clips is cached in --work: the same command resumes,
and computes nothing twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: its own folder on sys.path would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluation.shipped.setup import open_studio, parser
from training.commands import run_command

KNOBS = ("gap", "emphasis", "guidance")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 it failed on the way, 2 bad input, 130 Ctrl-C."""
    made = parser("knobs.py", __doc__)
    made.add_argument("--only", nargs="+", choices=KNOBS, default=KNOBS, help="these knobs alone")
    arguments = made.parse_args(argv)
    return run_command("knobs.py", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    studio, base, seeds = open_studio(arguments)
    from evaluation.shipped.knobs import measure_knob, record_of, write_knobs

    found = {knob: measure_knob(studio, knob, base, seeds) for knob in KNOBS if knob in arguments.only}
    record = record_of(studio, base, arguments.seed, arguments.count)
    sys.stdout.write(write_knobs(found, record, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
