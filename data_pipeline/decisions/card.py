"""The data card: where the data is from, what was done, what was dropped, whom that hits, how to remove a source."""

from __future__ import annotations

import json

from contextanyone_core.atomic_file import write_text
from data_pipeline.config import PipelineSettings
from data_pipeline.decisions.bias import Rate, drop_rates
from data_pipeline.decisions.outputs import Account, funnel_text
from data_pipeline.engine.work import Job
from data_pipeline.stage import cards_of

_CONSENT = {
    "documented": "The people shown agreed to this use, and the agreements are on file.",
    "not_needed": "Nobody real is shown.",
    "unknown": "Whether the people shown agreed to this use is not known. Do not publish the data.",
}


def write_card(account: Account, settings: PipelineSettings, job: Job) -> None:
    """Write the card as `README.md` of the output folder."""
    rates = drop_rates(job.root, account.decisions) if settings.chain == "world" else []
    parts = [_origin(settings), _funnel(account), _stages(job), _models(job), _rules(account), _bias(rates), _removal()]
    write_text(job.root / "README.md", "\n".join(["# Data card", *parts, ""]))


def _origin(settings: PipelineSettings) -> str:
    pairs = "No pairs." if settings.chain == "pixels" else f"References: {settings.reference}."
    return (
        f"\nSources: {settings.source}. Licence: {settings.license}. Chain: {settings.chain}. "
        f"{pairs}\n\n## Consent\n\n{_CONSENT[settings.consent]}\n"
    )


def _funnel(account: Account) -> str:
    return f"## Funnel\n\n```\n{funnel_text(account).rstrip()}\n```\n"


def _stages(job: Job) -> str:
    rows = [f"| {x.name} | {x.version} | `{json.dumps(x.settings, sort_keys=True)}` |" for x in job.stages]
    return "\n".join(["## Stages", "", "| stage | version | settings |", "|---|---|---|", *rows, ""])


def _models(job: Job) -> str:
    rows = [
        f"| {x.name} | {x.revision} | {x.purpose} | {x.licence.name} | {'yes' if x.licence.commercial else 'no'} |"
        for x in cards_of(job.stages)
    ]
    head = ["## Models", "", "| model | revision | for | licence | commercial use |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""]) if rows else "## Models\n\nNone.\n"


def _rules(account: Account) -> str:
    rows = [f"| {rule.name} | {rule.value:g} |" for rule in account.rules]
    return "\n".join(["## Thresholds", "", "| rule | value |", "|---|---|", *rows, ""])


def _bias(rates: list[Rate]) -> str:
    lines = ["## Whom the filters drop", ""]
    if not rates:
        lines += ["Skin tone, hair and body shape are not inferred, so drop rates by them are not known.", ""]
        return "\n".join(lines)
    lines += ["Rows without a planted fault, by the truth about the person; dropped with Wilson's 95 % interval.", ""]
    lines += ["| attribute | value | rows | dropped | rate |", "|---|---|---|---|---|"]
    lines += [
        f"| {x.attribute} | {x.value} | {x.rows} | {x.dropped} "
        f"| {x.dropped / x.rows:.3f} ({x.low:.3f} to {x.high:.3f}) |"
        for x in rates
    ]
    return "\n".join([*lines, ""])


def _removal() -> str:
    return (
        "## Removing a source\n\n"
        "`python data_pipeline/run.py remove --source NAME --out FOLDER` deletes everything derived from a source and "
        "keeps it out of later runs. Exports made before are not reached: export again.\n\n"
        "No face embedding is stored."
    )
