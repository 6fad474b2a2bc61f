"""Train and measure the cells of an ablation: `python evaluation/ablate.py evaluation/ablations.yaml --out DIR`.

DIR gets one file per cell and seed, and from all existing ones ablations.json, table.md and plot.png. Finished cells
are not computed again; an interrupted one resumes from its last checkpoint.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: its own folder on sys.path would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.commands import Parser, output_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all seeds of all cells done, 3 some missing; else as the trainer's."""
    parser = Parser(prog="ablate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("plan", type=Path, help="such as evaluation/ablations.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, made if needed")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the runs (runs/ablations)")
    parser.add_argument("--cells", nargs="+", default=[], metavar="CELL", help="only these")
    parser.add_argument("--minutes", type=float, help="start no cell that cannot end within so many minutes")
    parser.add_argument("--report-only", action="store_true", help="train nothing: write the report of what is there")
    arguments = parser.parse_args(argv)
    code = 0

    def command() -> int | None:
        nonlocal code
        code, ended_by = _run(arguments)
        return ended_by

    ended = run_command("ablate.py", command)
    return ended or code


def _run(arguments: argparse.Namespace) -> tuple[int, int | None]:
    from evaluation.ablation.plan import load_plan
    from evaluation.ablation.report import table, write_report
    from evaluation.ablation.runner import Runner

    plan = load_plan(arguments.plan)
    runner = Runner(plan, output_folder("--out", arguments.out), arguments.work)
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    ended_by = None if arguments.report_only else runner.run(arguments.cells, deadline)
    found = write_report(plan, runner.results(), arguments.out)
    sys.stdout.write(table(found))
    missing = any("missing" in cell for cell in found["cells"].values())
    return (3 if missing else 0), ended_by


if __name__ == "__main__":
    sys.exit(main())
