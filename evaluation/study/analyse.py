"""Analyse the answers of a user study.

    python evaluation/study/analyse.py --key STUDY/key.json --answers FOLDER --out DIR [--metrics metrics.json]

FOLDER holds the files that raters sent. DIR gets analysis.json and table.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: its own folder on sys.path would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from evaluation.json_file import read_object
from evaluation.markdown import cell
from training.commands import Parser, output_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="analyse.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--key", type=Path, required=True, help="key.json of the study")
    parser.add_argument("--answers", type=Path, required=True, help="folder with the raters' files")
    parser.add_argument("--metrics", type=Path, help="numbers to correlate with: {metric: {system: {item: number}}}")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if needed")
    return run_command("analyse.py", lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    from evaluation.study.analysis import analyse, read_answers

    key = read_object("--key", arguments.key)
    if not {"id", "trials", "rules"} <= key.keys():
        raise InputError(f"--key {arguments.key} is not the key of a study; build.py writes it as key.json.")
    if any("reference" not in trial for trial in key["trials"]):
        raise InputError(f"--key {arguments.key} does not say which pictures are one; build the study again.")
    if not arguments.answers.is_dir():
        raise InputError(f"--answers {arguments.answers} is no folder.")
    files = sorted(arguments.answers.glob("*.json"))
    metrics = None if arguments.metrics is None else _read_metrics(arguments.metrics)
    out = output_folder("--out", arguments.out)
    if not files:
        raise InputError(f"--answers {arguments.answers} has no .json file; put the files there that raters sent.")
    read = read_answers(key, files)
    if not read.answers:
        reasons = "; ".join(f"{rater} {reason}" for rater, reason in read.excluded.items())
        raise InputError(f"No rater of --answers {arguments.answers} is left: {reasons}.")
    left_out = {"excluded": read.excluded, "not_shown": _not_shown(read.not_shown, key)}
    found = {"raters_given": read.raters, **left_out, **analyse(read.answers, metrics)}
    for name, text in (("analysis.json", json.dumps(found, indent=1) + "\n"), ("table.md", table(found))):
        write_text(out / name, text)
    sys.stdout.write(table(found))


def table(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    from evaluation.study.analysis import LEAST_RATERS

    lines = [
        "| first | second | signed mean | strict wins | wins and half of the ties | preferred |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["pairs"]:
        signed = _interval(row["signed_mean"], 2, 1)
        wins = [_interval(row[name], 0, 100) for name in ("strict_win", "inclusive_win")]
        preferred = row["preferred"] or ("equal" if row["raters"] >= LEAST_RATERS else "too few raters")
        names = f"{cell(row['first'])} | {cell(row['second'])}"
        lines.append(f"| {names} | {signed} | {wins[0]} | {wins[1]} | {cell(preferred)} |")
    lines += ["", "| system | Bradley-Terry strength |", "|---|---|"]
    for name, row in found["bradley_terry"].items():
        lines.append(f"| {cell(name)} | {row['strength']:.2f} ({row['ci95'][0]:.2f} to {row['ci95'][1]:.2f}) |")
    if found["bradley_terry_separated"]:
        lines += [
            "",
            "Some systems never lost to the others: how far apart their strengths are is set by the model's prior.",
        ]
    alpha = found["krippendorff_alpha"]
    counted = f"{found['raters']} raters, {found['items']} items of {found['references']} references"
    lines += ["", f"{counted}; {len(found['excluded'])} raters excluded."]
    if any(row["raters"] < LEAST_RATERS for row in found["pairs"]):
        lines.append(f"No preference is named from fewer than {LEAST_RATERS} raters.")
    lines += [f"Krippendorff's alpha: {'not defined' if alpha is None else f'{alpha:.2f}'}.", ""]
    return "\n".join([*lines, *_left_out(found), *_correlations(found.get("spearman", {}))])


def _not_shown(counts: Mapping[str, int], key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Trials that could not be shown, with whose clips they are and to how many raters."""
    trials = {trial["id"]: trial for trial in key["trials"]}
    rows = [{"trial": name, "raters": count} for name, count in counts.items()]
    return [{**row, **{side: trials[row["trial"]][side] for side in ("first", "second")}} for row in rows]


def _left_out(found: Mapping[str, Any]) -> list[str]:
    """Raters who are left out, and pairs that browsers could not show."""
    lines = [f"- {rater} is left out: {reason}." for rater, reason in found["excluded"].items()]
    for row in found.get("not_shown", ()):
        clips = " and ".join(f"{system}'s clip of {item}" for system, item in (row["first"], row["second"]))
        lines.append(f"- {clips} could not be shown to {row['raters']} of the raters.")
    return [*lines, ""] if lines else []


def _correlations(spearman: Mapping[str, Any]) -> list[str]:
    """Rank correlations of the raters' scores with metrics."""
    from evaluation.metrics.catalogue import better_side

    if not spearman:
        return []
    lines = ["| metric | Spearman's rho with the raters | comparisons | raters and metric agree |", "|---|---|---|---|"]
    agreement = {"higher": "above 0", "lower": "below 0: lower is better", "": "neither way is better"}
    for name, row in spearman.items():
        rho = row["reason"] if row["rho"] is None else _interval({"mean": row["rho"], "ci95": row["ci95"]}, 2, 1)
        lines.append(f"| {name} | {rho} | {row['comparisons']} | {agreement[better_side(name)]} |")
    return [*lines, ""]


def _read_metrics(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    from pydantic import FiniteFloat, TypeAdapter, ValidationError

    try:
        return TypeAdapter(dict[str, dict[str, dict[str, FiniteFloat]]]).validate_python(read_object("--metrics", path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"--metrics {path}: {place} is wrong ({first['msg']}); {{metric: {{system: {{item: number}}}}}} is needed."
        ) from None


def _interval(number: Mapping[str, Any], digits: int, scale: float) -> str:
    low, high = number["ci95"]
    return f"{scale * number['mean']:.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
