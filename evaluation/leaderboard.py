"""Write one system's row of a leaderboard from the results of evaluation/run.py.

    python evaluation/leaderboard.py --results DIR --system ours --record record.json --out ours.row.json

record.json states how the clips were made; nothing of it can be left out: {"weights_sha256": "...", "sampler": "euler",
"steps": 30, "seeds": [0, 1, 2], "hardware": "1 x H100, bf16"}. The judge and the backbones are those of the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from evaluation.json_file import read_object
from evaluation.metrics.catalogue import OTHER, STILL, TRUTH
from training.commands import Parser, refuse_output_file, run_command

Text = Annotated[str, Field(min_length=1, max_length=500)]


class Record(BaseModel):
    """How the clips of a row were made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sampler: Text
    steps: Annotated[int, Field(ge=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    hardware: Text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="leaderboard.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--results", type=Path, required=True, help="folder that evaluation/run.py wrote")
    parser.add_argument("--system", required=True, help="the system of the row")
    parser.add_argument("--record", type=Path, required=True, help="how its clips were made, in JSON")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    return run_command("leaderboard.py", lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    refuse_output_file("--out", arguments.out)
    row = make_row(arguments.results, arguments.system, arguments.record)
    write_text(arguments.out, json.dumps(row, indent=1) + "\n")


def make_row(results: Path, system: str, record: Path) -> dict[str, Any]:
    """A row: the record, what measured, the results' notes, and every metric of the system with its interval.

    Raises:
        InputError: a file cannot be read, the record lacks something, no judge was used, or the system is a floor or
            ceiling row, has no results, or none of the judge's.
    """
    summary = read_object("--results", results / "summary.json")
    try:
        made = Record.model_validate(read_object("--record", record))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--record {record}, {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    if missing := sorted({"record", "metrics", "notes", "systems"} - summary.keys()):
        raise InputError(f"--results {results}: summary.json has no {missing[0]}; evaluation/run.py writes it.")
    measured = summary["record"]
    if measured["judge"] == "not run":
        raise InputError(f"--results {results} has no judge; run evaluation/run.py with --vlm and --vlm-model.")
    if system in (STILL, OTHER, TRUTH):
        raise InputError(f"--system is {system}, a floor or ceiling of every table and no system.")
    metrics = {name: found[system] for name, found in summary["metrics"].items() if system in found}
    if not metrics:
        raise InputError(f"--system is {system}; the systems are {', '.join(summary['systems'])}.")
    if "vlm_appearance" not in metrics:
        raise InputError(f"--system is {system}, no clip of which has a valid score of the judge.")
    measured_row = {"measured_with": measured, "notes": summary["notes"], "metrics": metrics}
    return {"system": system, **made.model_dump(), **measured_row}


if __name__ == "__main__":
    sys.exit(main())
