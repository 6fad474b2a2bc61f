"""A manifest of a folder of clips, and the account of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contextanyone_core.errors import InputError
from training.data.buckets import BucketSettings
from training.data.collect import collect
from training.data.manifest import write_manifest
from training.data.windows import Made, RowSettings, make_rows
from training.data.work import Share

_NAMED = 5  # videos that a line names


@dataclass(frozen=True)
class ManifestSettings:
    """Options of `training/make_manifest.py`: see its options."""

    folder: Path
    out: Path
    own_reference: bool
    license: str
    buckets: BucketSettings
    validation: float


def make_manifest(settings: ManifestSettings, share: Share) -> str:
    """Write the manifest of a folder.

    Returns:
        What was found, cut and left out, in lines.

    Raises:
        InputError: the folder holds no clip that a row can be made of, or the manifest cannot be written for it.
        Stopped: a stop was requested; no manifest is written.
    """
    folder, out = settings.folder.resolve(), settings.out.resolve()
    if out.parent not in (folder, *folder.parents):
        raise InputError(
            f"--out is {settings.out}, but paths in a manifest stay below its folder: put it into {settings.folder} or "
            "into a folder above."
        )
    made_here = out.parent / f"{out.stem}_references"
    found = collect(folder, made_here)
    rows = RowSettings(
        out.parent, made_here, settings.own_reference, settings.license, settings.buckets, settings.validation
    )
    made = make_rows(found.clips, rows, share)
    for video, reason in made.left_out:
        found.left_out[reason].append(video)
    left_out = [_left_out(reason, videos, folder) for reason, videos in found.left_out.items()]
    if not made.rows:
        raise InputError(f"No clip of {settings.folder} makes a row. {' '.join(left_out)}")
    write_manifest(settings.out, made.rows)
    return "".join(f"{line}\n" for line in (*_account(settings, made), *left_out, ""))


def _account(settings: ManifestSettings, made: Made) -> Iterator[str]:
    splits = Counter(row.split for row in made.rows)
    videos, sources = len({row.video for row in made.rows}), len({row.source for row in made.rows})
    counted = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
    yield f"{settings.out}: {len(made.rows)} rows ({counted}) of {videos} clips from {sources} sources"
    if made.available:
        yield f"{made.used / made.available:.1%} of the frames at 16 a second are in a row"
    unknown = sum(row.license == "unknown" for row in made.rows)
    if unknown:
        yield f"{unknown} rows have the license unknown; --license, a caption file or the table states it"


def _left_out(reason: str, videos: list[Path], folder: Path) -> str:
    names = [path.relative_to(folder).as_posix() for path in dict.fromkeys(videos)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} left out, {reason}: {', '.join(names[:_NAMED])}{more}."
