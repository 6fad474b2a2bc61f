"""What a run leaves behind: the table of decisions, the manifest, the funnel, the what-if table, the card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from data_pipeline.config import PipelineSettings
from data_pipeline.decisions.measure import measure
from data_pipeline.decisions.review import stored_review
from data_pipeline.decisions.rules import Decisions, Rule, decide, rules_of, what_if
from data_pipeline.decisions.splits import identities_of, split_rows
from data_pipeline.decisions.stored import StoredDrops, StoredRows, paths_of
from data_pipeline.engine.work import Job
from data_pipeline.models.stages import ModelStage, companions_start
from data_pipeline.rows import Dropped, Row, count_part, lines_of
from training.data.manifest import Edit, Hashes, ManifestRow, Split, write_lines, write_manifest

_UNVERIFIED = ("verify", "self")  # the stage whose rules do not hold for references of this kind


@dataclass(frozen=True)
class Account:
    """Every row of a run with its decision, what stages dropped, and the funnel of stages."""

    decisions: Decisions
    dropped: Iterable[Dropped]
    funnel: dict[str, object]

    @property
    def rules(self) -> Sequence[Rule]:
        """The rules that decided."""
        return self.decisions.rules


def account_of(job: Job, settings: PipelineSettings, names: Sequence[str]) -> Account:
    """Read the parts and decide; a stored review overrules the rules.

    Raises:
        InputError: a rule names a score that was not measured.
    """
    stages: dict[str, dict[str, object]] = {}
    entering = 0
    for number, stage in enumerate(job.stages):
        dropped: Counter[str] = Counter()
        count, sources = 0, 0
        for path in paths_of(job, number, names):
            sources += 1
            out, gone = count_part(path)
            count += out
            dropped.update(gone)
        entering = sources if number == 0 else entering
        stages[stage.name] = {
            "sources": sources,
            "in": entering,
            "out": count,
            "dropped": dict(sorted(dropped.items())),
        }
        entering = count
    filters = {
        stage: bounds for stage, bounds in settings.filters.items() if (stage, settings.reference) != _UNVERIFIED
    }
    last = len(job.stages) - 1
    through = [name for name in names if job.part_path(last, name).is_file()]  # fixed: a run may be going on
    decisions = decide(StoredRows(job, through), rules_of(filters), stored_review(job.root))
    funnel: dict[str, object] = {
        "sources": len(names),
        "failed": sum(job.failure_path(name).is_file() for name in names),
        "stages": stages,
        "rows": len(decisions),
        "kept": decisions.kept,
        "dropped": decisions.reasons(),
    }
    return Account(decisions, StoredDrops(job, names), funnel)


def write_outputs(job: Job, settings: PipelineSettings, account: Account) -> None:
    """Write `decisions.jsonl`, `funnel.json` and `what_if.json`.

    And `manifest.jsonl` where the chain makes pairs, `filters.json` where faults were planted.
    """
    table = ({**found.row.model_dump(), "reason": found.reason, "broken": found.broken} for found in account.decisions)
    write_lines(job.root / "decisions.jsonl", (json.dumps(line, sort_keys=True, ensure_ascii=False) for line in table))
    write_json(job.root / "funnel.json", account.funnel)
    write_json(job.root / "what_if.json", what_if(account.decisions))
    if settings.chain == "world":
        write_json(job.root / "filters.json", measure(job.root, account.decisions))
    asking = next((stage for stage in job.stages if isinstance(stage, ModelStage)), None)
    if asking is not None:
        clusters = identities_of(job.root, account.decisions.rows, asking.models)
        splits = split_rows((row.source, clusters[row.key]) for row in _kept(account))
        pairs = zip(_kept(account), splits, strict=True)
        write_manifest(job.root / "manifest.jsonl", (_pair(row, split, settings) for row, split in pairs))


def _kept(account: Account) -> Iterator[Row]:
    return (found.row for found in account.decisions if not found.reason)


def write_json(path: Path, data: object) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _pair(row: Row, split: Split, settings: PipelineSettings) -> ManifestRow:
    return ManifestRow(
        id=row.id,
        video=row.video,
        start_frame=row.start,
        num_frames=row.stop - row.start,
        width=int(row.scores["probe.width"]),
        height=int(row.scores["probe.height"]),
        reference=row.paths["reference"],
        target_frame_index=int(row.scores["target.index"]),
        mask=row.paths["mask"],
        pose=row.paths["pose"],
        companions_start=companions_start(row),
        prompt_first=row.labels["captions.first"],
        prompt_later=row.labels["captions.later"],
        edit=_edit(row, settings),
        scores=row.scores,
        source=settings.source,
        license=settings.license,
        split=split,
        sha256=Hashes(video=row.sha256),
    )


def _edit(row: Row, settings: PipelineSettings) -> Edit | None:
    """How the reference was made; None where it is a frame of the source."""
    if settings.reference != "edit":
        return None
    model = settings.gpu.editor if settings.gpu is not None else settings.chain
    return Edit(model=model, instruction=row.labels["verify.instruction"], seed=int(row.scores["verify.seed"]))


def read_decisions(root: Path) -> list[dict[str, object]]:
    """The table of decisions.

    Raises:
        InputError: the run has not written one yet.
    """
    path = root / "decisions.jsonl"
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the chain to its end first.")
    return [json.loads(line) for line in lines_of(path)]


def funnel_text(account: Account) -> str:
    """The funnel in words: stages, then reasons."""
    funnel = account.funnel
    lines = [f"{funnel['sources']:>8}  sources, {funnel['failed']} failed"]
    stages = funnel["stages"]
    if isinstance(stages, dict):
        for name, found in stages.items():
            words = "".join(f", {count} {reason}" for reason, count in found["dropped"].items())
            lines.append(f"{found['out']:>8}  rows after {name} ({found['sources']} sources{words})")
    lines.append(f"{funnel['kept']:>8}  kept by the filters")
    dropped = funnel["dropped"]
    if isinstance(dropped, dict):
        lines += [f"{count:>8}    {reason}" for reason, count in dropped.items()]
    return "\n".join(lines) + "\n"


def what_if_text(table: dict[str, list[dict[str, float]]], rules: Sequence[Rule]) -> str:
    """The what-if table in words; `>` marks the threshold that holds."""
    values = {rule.name: rule.value for rule in rules}
    lines = []
    for name, entries in table.items():
        lines.append(name)
        lines += [
            f"  {'>' if entry['threshold'] == values[name] else ' '} {entry['threshold']:<12g}{entry['kept']:>8} kept"
            for entry in entries
        ]
    return "\n".join(lines) + "\n"
