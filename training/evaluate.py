"""Measure the miniature on test characters.

    python training/evaluate.py --config training/configs/miniature/evaluate.yaml --seed 0 --count 200 --out DIR

DIR gets metrics.json, table.md and contact_sheet.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError
from training.commands import Parser, output_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 it failed on the way, 2 bad input, 130 Ctrl-C."""
    parser = Parser(prog="evaluate.py", description="Measure a model on test characters.", allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="such as training/configs/miniature/evaluate.yaml")
    parser.add_argument("--seed", type=int, default=0, help="which test characters (0)")
    parser.add_argument("--count", type=int, default=200, help="how many (200)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if needed")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="steps=20")
    arguments = parser.parse_args(argv)
    return run_command("evaluate.py", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    import torch  # late, with all that follows: --help shall be quick

    from training.evaluation.models import load_models, measuring_device
    from training.evaluation.report import table, write_report
    from training.evaluation.run import evaluate
    from training.evaluation.settings import load_settings

    settings = load_settings(arguments.config, arguments.set)
    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}; it must be at least 0.")
    if not 2 <= arguments.count < 1_000_000:
        raise InputError(f"--count is {arguments.count}; it must be at least 2, below a million.")
    out = output_folder("--out", arguments.out)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    settings = settings.settled(measuring_device())
    models = load_models(settings)
    outcome = evaluate(models, settings, arguments.seed, arguments.count)
    outcome.metrics["settings"] = settings.model_dump(mode="json")
    outcome.metrics["weights"] = models.hashes()
    write_report(outcome, out)
    sys.stdout.write(f"{table(outcome.metrics)}\n{outcome.metrics['seconds']['total']:.0f} s. Written to {out}.\n")


if __name__ == "__main__":
    sys.exit(main())
