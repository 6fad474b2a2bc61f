"""A person's decisions from the gallery: they overrule the rules, and measure them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from data_pipeline.decisions.rules import Decision


def read_review(path: Path) -> dict[str, bool | None]:
    """Whether each reviewed row is to be kept, by its id, None where that was taken back; an id's last line counts.

    Raises:
        InputError: the file is missing or has a line that is not `{"id": ..., "keep": true, false or null}`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The review {path} cannot be read: {error}.") from None
    found: dict[str, bool | None] = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not _is_decision(line):
            raise InputError(
                f'{path}, line {number}: {text[:80]!r} is not {{"id": "...", "keep": true, false or null}}; '
                "save the file with the gallery's button."
            )
        found[str(line["id"])] = None if line["keep"] is None else bool(line["keep"])
    return found


def _is_decision(line: dict[str, object]) -> bool:
    return line.keys() == {"id", "keep"} and isinstance(line["id"], str) and isinstance(line["keep"], bool | None)


def stored_review(root: Path) -> dict[str, bool]:
    """The review that a run's outputs follow; empty where nobody reviewed."""
    path = root / "review.jsonl"
    found = read_review(path) if path.is_file() else {}
    return {name: keep for name, keep in found.items() if keep is not None}


def store_review(root: Path, review: Mapping[str, bool]) -> None:
    """Keep a review beside the outputs, sorted by id."""
    lines = [json.dumps({"id": name, "keep": keep}) + "\n" for name, keep in sorted(review.items())]
    write_text(root / "review.jsonl", "".join(lines))


def take_review(root: Path, path: Path, decisions: Iterable[Decision]) -> None:
    """Add a file that the gallery saved to the run's review.

    Raises:
        InputError: as `read_review`, or it names a row that this run does not have.
    """
    review = read_review(path)
    nowhere = set(review)
    for found in decisions:
        nowhere.discard(found.row.id)
    unknown = sorted(nowhere)
    if unknown:
        raise InputError(f"{path} names {len(unknown)} rows that this run does not have, {unknown[0]} among them.")
    both = stored_review(root) | review
    store_review(root, {name: keep for name, keep in both.items() if keep is not None})


def agreement(decisions: Iterable[Decision], review: Mapping[str, bool]) -> dict[str, dict[str, float]]:
    """For each rule, and for `kept`: reviewed rows, and the share in which the person decided as the rule.

    Args:
        decisions: with or without the review; only which rules are broken counts.
    """
    judged: dict[str, list[bool]] = {}
    for found in decisions:
        keep = review.get(found.row.id)
        if keep is None:
            continue
        for rule in found.broken or ("kept",):
            judged.setdefault(rule, []).append(keep == (not found.broken))
    return {
        rule: {"reviewed": len(right), "precision": round(sum(right) / len(right), 4)}
        for rule, right in sorted(judged.items())
    }
