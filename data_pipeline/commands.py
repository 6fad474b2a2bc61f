"""The command that runs a chain; those over its output are in `output_commands`."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError, did_you_mean
from data_pipeline.chains import job_of
from data_pipeline.config import PipelineSettings, Reference, changed, read_config
from data_pipeline.decisions.outputs import account_of, funnel_text, write_outputs
from data_pipeline.decisions.rules import DEDUP, rules_of
from data_pipeline.engine.local import run_local
from data_pipeline.engine.progress import Progress, costs_in, last_line
from data_pipeline.engine.ray_data import run_ray
from data_pipeline.engine.reckoning import reckoning
from data_pipeline.engine.work import Done, Job, Selection
from data_pipeline.output_commands import OVER_OUTPUT, over_output
from data_pipeline.stage import UnavailableError
from training.commands import Parser, output_folder, run_command

EXIT_FAILED = 3
_STOP_AFTER = 3  # sources: one request may bring a server down, and a server may start again
_LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 3 where more sources failed than `engine.max_failed` allows."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in OVER_OUTPUT:
        return over_output(words[0], words[1:])
    parser = Parser(
        prog="run.py", description=f"Run a chain. Other commands: {', '.join(OVER_OUTPUT)}.", allow_abbrev=False
    )
    parser.add_argument("config", type=Path, help="a YAML file; docs/DATA_PIPELINE.md has its settings")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command resumes the run")
    parser.add_argument("--only", metavar="STAGE", help="recompute this stage, and stop after it")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="recompute this stage and all after it")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="processes, or Ray Data")
    parser.add_argument("--reference", choices=get_args(Reference), help="in place of the configuration's")
    parser.add_argument("--commercial", action="store_true", help="refuse models and sources that do not allow it")
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
    settings = changed(read_config(arguments.config), arguments.reference, arguments.commercial)
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit is {arguments.limit}; it must be at least 1.")
    if arguments.only is not None and arguments.first is not None:
        raise InputError("--only and --from are both given; give one of the two.")
    root = arguments.out
    job = job_of(settings, root, Selection(arguments.only or arguments.first, arguments.only))
    known = [stage.name for stage in job.stages]
    if job.selection.first is not None and job.selection.first not in known:
        raise InputError(f"{job.selection.first} is no stage of the chain {settings.chain}: {', '.join(known)}.")
    _refuse_absent_stages(settings, known)
    names = job.sources.names()[: arguments.limit]
    if arguments.dry_run:
        sys.stdout.write(_plan_text(job, names, settings))
        return False
    for stage in job.stages:
        stage.check()
    output_folder("--out", root)
    _remember(root, settings)
    failures = _work_through(job, settings, names, arguments.engine)
    if job.selection.last is not None:
        return failures > settings.engine.max_failed * len(names)
    account = account_of(job, settings, names)
    write_outputs(job, settings, account)
    sys.stdout.write(f"{funnel_text(account)}To look at it: python data_pipeline/run.py gallery --out {root}\n")
    return failures > settings.engine.max_failed * len(names)


def _refuse_absent_stages(settings: PipelineSettings, known: Sequence[str]) -> None:
    """Refuse, before anything runs, filters of stages that the chain does not have."""
    for rule in rules_of(settings.filters):
        if rule.name != DEDUP and rule.stage not in known:
            near = did_you_mean(rule.stage, known)
            needs = " It needs text: true." if rule.stage == "ocr" else ""
            raise InputError(
                f"filters.{rule.name}: the chain {settings.chain} has no stage {rule.stage}: {', '.join(known)}."
                f"{needs or near}"
            )


def _work_through(job: Job, settings: PipelineSettings, names: Sequence[str], engine: str) -> int:
    """Run the engine; how many sources failed.

    Raises:
        UnavailableError: three sources in turn failed by what every source needs.
    """
    progress = Progress(job.root / "progress.jsonl", len(names), job.stages)
    failures = in_turn = 0
    run = run_ray if engine == "ray" else run_local
    with closing(run(job, names, settings.engine.workers, progress)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Done):
                asked = any(stage.expensive and one[1] for stage, one in zip(job.stages, outcome.stages, strict=False))
                in_turn = 0 if asked else in_turn  # one that asks no model says nothing about them
                continue
            failures += 1
            _LOGGER.warning("%s failed in %s: %s", outcome.source, outcome.stage, " ".join(outcome.error.split()))
            in_turn += outcome.unavailable
            if in_turn == _STOP_AFTER:
                raise UnavailableError(
                    f"{in_turn} sources in turn failed, the last in {outcome.stage}: {outcome.error}"
                )
    return failures


def _plan_text(job: Job, names: Sequence[str], settings: PipelineSettings) -> str:
    lines, left = [f"{len(names):>8}  sources"], []
    for number, stage in enumerate(job.stages):
        there = sum(job.part_path(number, name).is_file() for name in names)
        left.append(len(names) - there)
        lines.append(f"{there:>8}  done of {stage.name} ({job.folders[number].name})")
    costs = costs_in(last_line(job.root / "progress.jsonl"))
    return "\n".join(lines) + "\n" + reckoning(job.stages, costs, settings.engine.stage_seconds, left)


def _remember(root: Path, settings: PipelineSettings) -> None:
    """Keep the configuration beside the output; one folder holds one chain over one set of sources."""
    path = root / "settings.json"
    if path.is_file():
        before = read_config(path)
        if (before.chain, before.sources) != (settings.chain, settings.sources):
            raise InputError(f"--out {root} holds a run of other sources or of another chain; choose another folder.")
    write_text(path, settings.model_dump_json(indent=1) + "\n")
