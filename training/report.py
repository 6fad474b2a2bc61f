"""One HTML page of a run, also while it trains: `python training/report.py RUN [--out FILE]`.

Curves, samples, configuration and record in one file that needs no network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contextanyone_core.atomic_file import write_text
from training.commands import Parser, refuse_output_file, run_command
from training.reporting.page import report_page


def report(run: Path, out: Path | None) -> None:
    """Write the page, whole or not at all; RUN/report.html where no other place is given.

    Raises:
        InputError: run is not the folder of a run, or has no step yet, or out cannot be written.
    """
    if out is not None:
        refuse_output_file("--out", out)
    page = report_page(run)
    out = out or run / "report.html"
    write_text(out, page)
    sys.stdout.write(f"{out}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="report.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/miniature-vae")
    parser.add_argument("--out", type=Path, help="the page to write (RUN/report.html)")
    options = parser.parse_args(argv)
    return run_command("report.py", lambda: report(options.run, options.out))


if __name__ == "__main__":
    sys.exit(main())
