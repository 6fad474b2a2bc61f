"""Removing a source: everything that was derived from it, and a note that keeps it out of later runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from data_pipeline.chains import removed_from
from data_pipeline.decisions.review import store_review, stored_review
from data_pipeline.engine.work import Job
from data_pipeline.rows import lines_of
from training.data.manifest import write_lines


def remove_source(job: Job, name: str, everybody: Sequence[str]) -> int:
    """Delete what a run derived from a source, of all stages and settings that it ever ran with.

    The video in `sources.folder` is the user's and stays; a rendered one goes. What other files say of the source
    (decisions, manifest, clusters, gallery) goes when the caller writes them anew.

    Args:
        everybody: the names of the sources of the run.

    Returns: how many files and folders were deleted.

    Raises:
        InputError: the run has no such source.
    """
    if name not in everybody:
        raise InputError(f"{name} is no source of this run; see the column source of {job.root / 'decisions.jsonl'}.")
    removed = removed_from(job.root) | {name}  # first of all: what is killed in between is not computed anew
    write_text(job.root / "removed.txt", "".join(f"{one}\n" for one in sorted(removed)))
    files = [*(job.root / "parts").glob("*/*.jsonl"), *(job.root / "failed").glob("*.json")]
    gone = [path for path in files if path.stem == name]
    gone += [job.root / folder / name for folder in ("files", "sources")]
    gone += [job.root / part for part in ("clusters.json", "gallery", "filters.json")]
    count = 0
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            path.unlink()
        else:
            continue
        count += 1
    review = stored_review(job.root)
    left = {row: keep for row, keep in review.items() if row.rsplit("-", 2)[0] != name}
    if left != review:
        store_review(job.root, left)
    return count


def without_source(root: Path, name: str) -> int:
    """Take a source's lines out of `decisions.jsonl` and `manifest.jsonl`, where the rows cannot be decided anew.

    Returns: how many lines went.
    """
    count = 0
    for path in (root / "decisions.jsonl", root / "manifest.jsonl"):
        if path.is_file():
            lines = lines_of(path)
            left = [line for line in lines if _source_of(json.loads(line)) != name]
            write_lines(path, left)
            count += len(lines) - len(left)
    return count


def _source_of(line: dict[str, str]) -> str:
    """A decision names its source; the manifest's `source` is the licence's, and the id begins with ours."""
    return line["id"].rsplit("-", 2)[0] if "id" in line else line["source"]
