"""Measure the shipped model where training was not: unseen values, damaged references, vague prompts, larger sizes.

    python evaluation/robust.py --out DIR --count 32

DIR gets robustness.json and robustness.md. Every measured batch of clips is cached in --work: the same command resumes,
and computes nothing twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: its own folder on sys.path would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from evaluation.shipped.setup import open_studio, parser
from training.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 it failed on the way, 2 bad input, 130 Ctrl-C."""
    made = parser("robust.py", __doc__)
    made.add_argument("--only", nargs="+", default=[], metavar="TRIAL", help="these alone; as_trained is added")
    arguments = made.parse_args(argv)
    return run_command("robust.py", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    studio, base, seeds = open_studio(arguments)
    from evaluation.shipped.knobs import describe, record_of
    from evaluation.shipped.robustness import BASE, measure_trials, trials, write_robustness

    every = trials(base)
    if unknown := sorted(set(arguments.only) - every.keys()):
        raise InputError(f"--only names {', '.join(unknown)}; the trials are {', '.join(every)}.")
    chosen = {name: trial for name, trial in every.items() if not arguments.only or name in (BASE, *arguments.only)}
    found = measure_trials(studio, chosen, seeds)
    record = record_of(studio, base, arguments.seed, arguments.count)
    sys.stdout.write(write_robustness(found, record, describe(record), arguments.out))


if __name__ == "__main__":
    sys.exit(main())
