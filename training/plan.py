"""What a run will cost: `python training/plan.py --config C.yaml [--set a.b=c ...] [--card H100] [--gpus 8]`.

Needs neither the data nor the weights nor a GPU; where cached data are there, their buckets are taken.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError, did_you_mean
from training.commands import Parser, refuse_output_file, run_command
from training.planning.cards import CARDS


def plan(options: argparse.Namespace) -> None:
    """Write the plan to the standard output, and the density of noise levels as a picture if requested.

    Raises:
        InputError: a card that is not listed, a number of GPUs that is none, or what `plan_run` refuses.
    """
    from training.config import load_config  # late, with all that follows: --help shall be quick
    from training.planning.density import draw_density
    from training.planning.plan import plan_run
    from training.planning.text import plan_text

    config, card, gpus, plot = load_config(options.config, options.set), options.card, options.gpus, options.plot
    if card is not None and card not in CARDS:
        raise InputError(f"--card is {card}; known are {', '.join(CARDS)}.{did_you_mean(card, CARDS)}")
    if gpus < 1:
        raise InputError(f"--gpus is {gpus}; it must be at least 1.")
    if plot is not None:
        refuse_output_file("--plot", plot)
    planned = plan_run(config, gpus)
    sys.stdout.write(plan_text(planned, CARDS if card is None else {card: CARDS[card]}))
    if plot is not None:
        with whole_file(plot) as beside:
            draw_density(beside, planned.levels)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="plan.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="a run's configuration, as for train.py")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="run.steps=100")
    parser.add_argument("--card", help=f"one of {', '.join(CARDS)}; all of them where not given")
    parser.add_argument("--gpus", type=int, default=1, help="processes that train together, one on each (1)")
    parser.add_argument("--plot", type=Path, help="write the density of the sampled noise levels as a PNG")
    options = parser.parse_args(argv)
    return run_command("plan.py", lambda: plan(options))


if __name__ == "__main__":
    sys.exit(main())
