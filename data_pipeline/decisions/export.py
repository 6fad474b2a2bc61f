"""A folder that stands alone: the manifest, every file that it names, the card. Nothing in it leads outside."""

from __future__ import annotations

import shutil
from pathlib import Path

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from data_pipeline.licences import is_unknown
from training.data.manifest import read_manifest


def export(root: Path, to: Path) -> int:
    """Copy the kept pairs of a run with their files, links as the files that they lead to.

    Args:
        root: the output folder. to: a new folder.

    Returns: the number of rows.

    Raises:
        InputError: there is no manifest or no row in it, `to` exists, or a file is missing.
    """
    path = root / "manifest.jsonl"
    if not path.is_file():
        raise InputError(f"{path} does not exist; run a chain that makes pairs to its end first.")
    if to.exists():
        raise InputError(f"--to {to} exists; name a new folder.")
    if not path.read_bytes().strip():
        raise InputError(f"{path} has no row; loosen the filters first.")
    rows = [line.row for line in read_manifest(path).lines]
    unknown = [row for row in rows if is_unknown(row.license)]
    if unknown:
        raise InputError(f"{len(unknown)} rows have the licence unknown; state `license` in the configuration first.")
    to.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(to) as beside:
        beside.mkdir()
        for name in sorted({name for row in rows for name in row.paths().values()}):
            _copy(root / name, beside / name)
        _copy(path, beside / path.name)
        for name in ("README.md", "funnel.json"):
            if (root / name).is_file():
                _copy(root / name, beside / name)
    return len(rows)


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.is_dir():
            shutil.copytree(path, to)
        else:
            shutil.copyfile(path, to)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist any more; compute its source anew.") from None
