"""How well personal models show their person, and only that: `python training/evaluate_personal.py --out DIR`.

Arms on test characters of the miniature, each trained on one clip. Cells are kept in DIR; the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.errors import InputError, did_you_mean
from training.commands import Parser, output_folder, run_command

_SHORTEST = 20  # steps


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="evaluate_personal.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="the folder of cells, LoRAs and metrics.json")
    parser.add_argument("--characters", type=int, default=8, help="how many test characters (8)")
    parser.add_argument("--prompts", type=int, default=24, help="clips of each (24)")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler (10)")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="all of them where not given")
    parser.add_argument("--curves", nargs="+", type=int, metavar="STEPS", help="train so long each, and draw curves")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of every training")
    given = parser.parse_args(argv)

    def command() -> int | None:
        from training.personal_study.arms import ARMS  # late, with torch behind the rest: --help shall be quick
        from training.personal_study.curves import CURVE_ARMS, Curves
        from training.personal_study.study import Study, table

        arms = tuple(given.arms or (CURVE_ARMS if given.curves else ARMS))
        for name in arms:
            if name not in ARMS:
                raise InputError(f"--arms: {name} is none; known are {', '.join(ARMS)}.{did_you_mean(name, ARMS)}")
            if given.curves and ARMS[name].changes is None:
                raise InputError(f"--curves: {name} trains nothing; leave it out of --arms.")
        for option, least in (("characters", 1), ("prompts", 4), ("steps", 1)):
            if getattr(given, option) < least:
                raise InputError(f"--{option} is {getattr(given, option)}; it must be at least {least}.")
        lengths = tuple(sorted(set(given.curves or ())))
        if lengths and lengths[0] < _SHORTEST:
            raise InputError(f"--curves: {lengths[0]} steps are too few for two stages; at least {_SHORTEST}.")
        study = Study(
            output_folder("--out", given.out), arms, given.characters, given.prompts, given.steps, tuple(given.set)
        )
        if lengths:
            if (ended_by := Curves(study, lengths).run()) is None:
                sys.stdout.write(f"{given.out / 'curves.json'}\n{given.out / 'curves.png'}\n")
            return ended_by
        if (ended_by := study.run()) is None:
            sys.stdout.write(table(study.metrics()) + f"{given.out / 'metrics.json'}\n")
        return ended_by

    return run_command("evaluate_personal.py", command)


if __name__ == "__main__":
    sys.exit(main())
