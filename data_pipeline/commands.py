"""The commands: run a chain; `status`, `filter`, `inspect`, `card` and `measure` over its output."""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from data_pipeline.chains import job_of
from data_pipeline.config import PipelineSettings, read_config
from data_pipeline.decisions.measure import fitted, measure
from data_pipeline.decisions.outputs import (
    account_of,
    card_text,
    funnel_text,
    read_decisions,
    what_if_text,
    write_json,
    write_outputs,
)
from data_pipeline.decisions.rules import what_if
from data_pipeline.engine.local import Progress, run_local
from data_pipeline.engine.work import Failed, Job, Selection
from training.commands import Parser, output_folder, run_command

EXIT_FAILED = 3
_LOGGER = logging.getLogger(__name__)
_OVER_OUTPUT = ("status", "filter", "inspect", "card", "measure")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 3 where more sources failed than `engine.max_failed` allows."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in _OVER_OUTPUT:
        return _over_output(words[0], words[1:])
    parser = Parser(
        prog="run.py", description=f"Run a chain. Other commands: {', '.join(_OVER_OUTPUT)}.", allow_abbrev=False
    )
    parser.add_argument("config", type=Path, help="a YAML file; docs/DATA_PIPELINE.md has its settings")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command resumes the run")
    parser.add_argument("--only", metavar="STAGE", help="recompute this stage, and stop after it")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="recompute this stage and all after it")
    parser.add_argument("--limit", type=int, help="the first N sources")
    parser.add_argument("--dry-run", action="store_true", help="list what would be computed, and stop")
    arguments = parser.parse_args(words)
    return _exit_code(lambda: _run(arguments))


def _exit_code(command: Callable[[], bool]) -> int:
    """`run_command`, with the exit code of failed sources."""
    failed = False

    def wrapped() -> int | None:
        nonlocal failed
        failed = command()
        return None

    code = run_command("run.py", wrapped)
    return EXIT_FAILED if failed and code == 0 else code


def _run(arguments: Namespace) -> bool:
    settings = read_config(arguments.config)
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit is {arguments.limit}; it must be at least 1.")
    if arguments.only is not None and arguments.first is not None:
        raise InputError("--only and --from are both given; give one of the two.")
    root = arguments.out
    job = job_of(settings, root, Selection(arguments.only or arguments.first, arguments.only))
    known = [stage.name for stage in job.stages]
    if job.selection.first is not None and job.selection.first not in known:
        raise InputError(f"{job.selection.first} is no stage of the chain {settings.chain}: {', '.join(known)}.")
    names = job.sources.names()[: arguments.limit]
    if arguments.dry_run:
        sys.stdout.write(_plan_text(job, names))
        return False
    output_folder("--out", root)
    _remember(root, settings)
    failures = _work_through(job, settings, names)
    if job.selection.last is not None:
        return failures > settings.engine.max_failed * len(names)
    account = account_of(job, settings, names)
    write_outputs(job, settings, account)
    if settings.chain == "world":
        write_json(root / "filters.json", measure(root, account.decisions))
    sys.stdout.write(funnel_text(account))
    return failures > settings.engine.max_failed * len(names)


def _work_through(job: Job, settings: PipelineSettings, names: Sequence[str]) -> int:
    """Run the engine; how many sources failed."""
    progress = Progress(job.root / "progress.jsonl", len(names))
    failures = 0
    for outcome in run_local(job, names, settings.engine.workers, progress):
        if isinstance(outcome, Failed):
            failures += 1
            _LOGGER.warning("%s failed in %s: %s", outcome.source, outcome.stage, " ".join(outcome.error.split()))
    return failures


def _plan_text(job: Job, names: Sequence[str]) -> str:
    lines = [f"{len(names):>8}  sources"]
    for number, stage in enumerate(job.stages):
        there = sum(job.part_path(number, name).is_file() for name in names)
        lines.append(f"{there:>8}  done of {stage.name} ({job.part_path(number, '').parent.name})")
    return "\n".join(lines) + "\n"


def _remember(root: Path, settings: PipelineSettings) -> None:
    """Keep the configuration beside the output; one folder holds one chain over one set of sources."""
    path = root / "settings.json"
    if path.is_file():
        before = PipelineSettings.model_validate_json(path.read_text(encoding="utf-8"))
        if (before.chain, before.sources) != (settings.chain, settings.sources):
            raise InputError(f"--out {root} holds a run of other sources or of another chain; choose another folder.")
    write_text(path, settings.model_dump_json(indent=1) + "\n")


def _over_output(name: str, words: Sequence[str]) -> int:
    parser = Parser(prog=f"run.py {name}", allow_abbrev=False)
    if name == "inspect":
        parser.add_argument("id", help="the id of a row, as decisions.jsonl has it")
    parser.add_argument("--out", type=Path, required=True, help="the folder of a run")
    if name == "filter":
        parser.add_argument(
            "--set", action="append", default=[], metavar="RULE=VALUE", help="such as person.min_area=0.1"
        )
    arguments = parser.parse_args(words)

    def command() -> None:
        sys.stdout.write(_inspect(arguments) if name == "inspect" else _account_command(name, arguments))

    return run_command(f"run.py {name}", command)


def _account_command(name: str, arguments: Namespace) -> str:
    root = arguments.out
    if not (root / "settings.json").is_file():
        raise InputError(f"--out {root} holds no run; start one by run.py CONFIG --out {root}.")
    settings = read_config(root / "settings.json", arguments.set if name == "filter" else ())
    job = job_of(settings, root)
    account = account_of(job, settings, job.sources.names())
    if name == "filter":
        write_outputs(job, settings, account)
        write_text(root / "settings.json", settings.model_dump_json(indent=1) + "\n")
        return funnel_text(account) + what_if_text(
            what_if([x.row for x in account.decisions], account.rules), account.rules
        )
    if name == "card":
        write_text(root / "README.md", card_text(account, settings, job))
        return f"{root / 'README.md'}\n"
    if name == "measure":
        if settings.chain != "world":
            raise InputError("measure needs planted faults: only the chain world has them.")
        found = {**measure(root, account.decisions), "fitted": fitted(root, account.decisions, account.rules)}
        return json.dumps(found, indent=1) + "\n"
    return funnel_text(account) + _progress_text(root)


def _progress_text(root: Path) -> str:
    path = root / "progress.jsonl"
    if not path.is_file():
        return ""
    last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return f"last: {last['done']} of {last['total']} sources, {last['rows_per_s']} rows/s, {last['eta_s']} s left\n"


def _inspect(arguments: Namespace) -> str:
    table = read_decisions(arguments.out)
    for line in table:
        if f"{line['source']}-{line['start']:06d}-{line['stop']:06d}" == arguments.id:
            return json.dumps(line, indent=1, ensure_ascii=False) + "\n"
    raise InputError(
        f"{arguments.id} is no row of {arguments.out / 'decisions.jsonl'}; ids are <source>-<start>-<stop>."
    )
