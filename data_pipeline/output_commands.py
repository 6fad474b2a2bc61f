"""The commands over a run's output: none of them runs a stage."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from data_pipeline.chains import job_of
from data_pipeline.config import PipelineSettings, read_config
from data_pipeline.decisions.card import write_card
from data_pipeline.decisions.export import export
from data_pipeline.decisions.measure import fitted, measure
from data_pipeline.decisions.outputs import (
    Account,
    account_of,
    funnel_text,
    read_decisions,
    what_if_text,
    write_outputs,
)
from data_pipeline.decisions.removal import remove_source, without_source
from data_pipeline.decisions.review import agreement, stored_review, take_review
from data_pipeline.decisions.rules import what_if
from data_pipeline.decisions.stored import paths_of, require_current, stale_sources
from data_pipeline.engine.progress import costs_in, last_line, progress_words
from data_pipeline.engine.reckoning import reckoning
from data_pipeline.engine.work import Job
from data_pipeline.gallery.build import build_gallery
from training.commands import Parser, run_command


def over_output(name: str, words: Sequence[str]) -> int:
    """Run one of `OVER_OUTPUT` and return its exit code."""
    parser = Parser(prog=f"run.py {name}", allow_abbrev=False)
    if name == "inspect":
        parser.add_argument("id", help="the id of a row, as decisions.jsonl has it")
    parser.add_argument("--out", type=Path, required=True, help="the folder of a run")
    if name == "filter":
        wanted = "such as person.min_area=0.1"
        parser.add_argument("--set", action="append", default=[], metavar="RULE=VALUE", help=wanted)
        parser.add_argument("--review", type=Path, metavar="FILE", help="review.jsonl, as the gallery saves it")
    if name == "gallery":
        parser.add_argument("--most", type=int, default=200, metavar="N", help="rows of each reason; default 200")
    if name == "remove":
        parser.add_argument("--source", required=True, metavar="NAME", help="the source, as decisions.jsonl has it")
    if name == "export":
        parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    arguments = parser.parse_args(words)

    def command() -> None:
        sys.stdout.write(_COMMANDS[name](arguments))

    return run_command(f"run.py {name}", command)


def _read(root: Path, overrides: Sequence[str] = ()) -> tuple[PipelineSettings, Job]:
    if not (root / "settings.json").is_file():
        raise InputError(f"--out {root} holds no run; start one by run.py CONFIG --out {root}.")
    settings = read_config(root / "settings.json", overrides)
    return settings, job_of(settings, root)


def _account(settings: PipelineSettings, job: Job) -> Account:
    require_current(job)
    return account_of(job, settings, job.sources.names())


def _status(arguments: Namespace) -> str:
    settings, job = _read(arguments.out)
    names = job.sources.names()
    account = account_of(job, settings, names)
    seen = [sum(1 for _ in paths_of(job, number, names)) for number in range(len(job.stages))]
    last = last_line(arguments.out / "progress.jsonl")
    left = [len(names) - count for count in seen]
    words = f"last: {progress_words(last)}\n" if last else ""
    if older := stale_sources(job):
        words += f"{older} of {len(names)} sources have the last stage by other settings or older code alone\n"
    return funnel_text(account) + words + reckoning(job.stages, costs_in(last), settings.engine.stage_seconds, left)


def _filter(arguments: Namespace) -> str:
    settings, job = _read(arguments.out, arguments.set)
    if arguments.review is not None:
        take_review(arguments.out, arguments.review, _account(settings, job).decisions)
    account = _account(settings, job)
    write_outputs(job, settings, account)
    write_text(arguments.out / "settings.json", settings.model_dump_json(indent=1) + "\n")
    table = what_if(account.decisions)
    agreed = agreement(account.decisions, stored_review(arguments.out))
    lines = [
        f"{x['precision']:>8.4f}  of {x['reviewed']:g} reviewed rows agree with {rule}\n" for rule, x in agreed.items()
    ]
    return funnel_text(account) + what_if_text(table, account.rules) + "".join(lines)


def _inspect(arguments: Namespace) -> str:
    for line in read_decisions(arguments.out):
        if f"{line['source']}-{line['start']:06d}-{line['stop']:06d}" == arguments.id:
            return json.dumps(line, indent=1, ensure_ascii=False) + "\n"
    raise InputError(
        f"{arguments.id} is no row of {arguments.out / 'decisions.jsonl'}; ids are <source>-<start>-<stop>."
    )


def _card(arguments: Namespace) -> str:
    settings, job = _read(arguments.out)
    write_card(_account(settings, job), settings, job)
    return f"{arguments.out / 'README.md'}\n"


def _measure(arguments: Namespace) -> str:
    settings, job = _read(arguments.out)
    if settings.chain != "world":
        raise InputError("measure needs planted faults: only the chain world has them.")
    account = _account(settings, job)
    found = {**measure(job.root, account.decisions), "fitted": fitted(job.root, account.decisions, account.rules)}
    return json.dumps(found, indent=1) + "\n"


def _gallery(arguments: Namespace) -> str:
    if arguments.most < 1:
        raise InputError(f"--most is {arguments.most}; it must be at least 1.")
    settings, job = _read(arguments.out)
    return f"{build_gallery(arguments.out, _account(settings, job), arguments.most)}\n"


def _remove(arguments: Namespace) -> str:
    settings, job = _read(arguments.out)
    names = job.sources.names()
    count = remove_source(job, arguments.source, names)
    settings, job = _read(arguments.out)
    if stale_sources(job):
        lines = without_source(arguments.out, arguments.source)
        return f"{count} files and folders and {lines} lines of {arguments.source} deleted\n"
    left = [name for name in names if name != arguments.source]
    account = account_of(job, settings, left)
    write_outputs(job, settings, account)
    if (arguments.out / "README.md").is_file():
        write_card(account, settings, job)
    return f"{count} files and folders of {arguments.source} deleted; {account.funnel['kept']} rows kept\n"


def _export(arguments: Namespace) -> str:
    settings, job = _read(arguments.out)
    write_card(_account(settings, job), settings, job)
    count = export(arguments.out, arguments.to)
    return f"{count} rows in {arguments.to / 'manifest.jsonl'}\n"


_COMMANDS: dict[str, Callable[[Namespace], str]] = {
    "status": _status,
    "filter": _filter,
    "inspect": _inspect,
    "card": _card,
    "measure": _measure,
    "gallery": _gallery,
    "remove": _remove,
    "export": _export,
}
OVER_OUTPUT = tuple(_COMMANDS)
"""The words that stand in the place of a configuration."""
