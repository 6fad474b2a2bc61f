"""Rows of found clips: long ones cut into windows as long as the buckets, references of their own, split by source."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from training.data.buckets import BucketSettings
from training.data.collect import FoundClip
from training.data.manifest import ManifestRow, parse_row
from training.data.media import MediaError, probe, read_frames, read_masks
from training.data.progress import Progress
from training.data.video_windows import Windows, cut_windows
from training.data.work import Share, in_threads, thread_count

_MARGIN = 0.1  # around the person, of the person's size
_PERSON = 0.005  # share of the picture that a person has at least
_QUALITY = 95  # of the JPEG files


@dataclass(frozen=True)
class RowSettings:
    """How rows are made.

    Attributes:
        root: the manifest's folder. made: the folder below it for references that are cut out of clips.
        own_reference: whether the reference is another moment of the same clip.
        license: of what states none. buckets: which windows there are. validation: share of the sources in `val`.
    """

    root: Path
    made: Path
    own_reference: bool
    license: str
    buckets: BucketSettings
    validation: float


@dataclass(frozen=True)
class Made:
    """The rows; what is left out and why; frames at 16 a second, and how many of them the rows have."""

    rows: list[ManifestRow]
    left_out: list[tuple[Path, str]]
    available: int
    used: int


def make_rows(clips: Sequence[FoundClip], settings: RowSettings, share: Share) -> Made:
    """The rows of clips, in their order.

    Raises:
        InputError: a caption or table gives a column an impossible value.
        Stopped: a stop was requested.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    left_out: list[tuple[Path, str]] = []
    available = used = 0
    stems = Counter(video.with_suffix("") for video in dict.fromkeys(clip.video for clip in clips))
    numbers = Counter[str]()
    with Progress("cutting clips", len(clips), "clips") as progress:
        work = partial(_rows_of, settings=settings, share=share)
        for clip, (windows, made) in in_threads(work, clips, share, thread_count(), 4):
            progress.advance()
            available, used = available + windows.available, used + windows.used
            if not made:
                left_out.append((clip.video, _reason(settings)))
            path = clip.video if stems[clip.video.with_suffix("")] > 1 else clip.video.with_suffix("")
            name = _short(path.relative_to(settings.root).as_posix())
            for columns in made:
                numbers[name] += 1
                rows.append((name, columns))
    seen = Counter[str]()
    named = []
    for name, columns in rows:
        seen[name] += 1
        named.append(columns | {"id": name if numbers[name] == 1 else f"{name}-{seen[name]:04d}"})
    _split(named, settings.validation)
    return Made([parse_row(columns) for columns in named], left_out, available, used)


def _reason(settings: RowSettings) -> str:
    if settings.own_reference:
        return "no moment of it shows the person in its mask"
    return "no reference picture; --reference self takes another moment of the clip"


def _rows_of(clip: FoundClip, settings: RowSettings, share: Share) -> tuple[Windows, list[dict[str, Any]]]:
    """The windows of a clip and their columns, without ids; none where there is no reference."""
    share.between()
    given = clip.columns
    columns = {
        "video": _below(clip.video, settings),
        "source": _below(clip.video, settings),
        "license": settings.license,
    }
    if clip.mask is not None:
        columns["mask"] = _below(clip.mask, settings)
    named = given.keys() & {"reference", "references"}
    if not named and not settings.own_reference:
        if not clip.references:
            return Windows([], 0, 0, 0, 0), []
        columns |= _reference_columns(clip, settings)
    windows = _windows(clip, settings)
    made = []
    for start, count in windows.parts:
        row = (
            columns
            | given
            | ({"start_frame": start} if start else {})
            | ({} if count is None else {"num_frames": count})
        )
        if not named and settings.own_reference:
            stop = windows.first + windows.length if count is None else start + count
            own = _own_reference(clip, (start + stop) // 2, windows, settings)
            if own is None:
                continue
            row |= own
        made.append(row)
        share.between()
    return windows, made


def _windows(clip: FoundClip, settings: RowSettings) -> Windows:
    """The windows of the part of a clip that its columns name; a clip that cannot be read is left to the check."""
    try:
        start, count = int(clip.columns.get("start_frame", 0)), clip.columns.get("num_frames")
        fps, count = clip.columns.get("fps"), None if count is None else int(count)
        times = probe(clip.video, None if fps is None else float(fps)).times
        stop = len(times) if count is None else start + count
    except MediaError:
        return Windows([(0, None)], 0, 0, 0, 0)
    except (TypeError, ValueError):
        raise InputError(f"{clip.video}: start_frame, num_frames and fps must be numbers.") from None
    if not 0 <= start < stop <= len(times):
        return Windows([(start, count)], 0, len(times), 0, 0)  # the check names what is wrong with the part
    found = cut_windows(times[start:stop], settings.buckets.frames)
    parts = [(start + at, count if length is None else length) for at, length in found.parts]
    return Windows(parts, start, stop - start, found.available, found.used)


def _reference_columns(clip: FoundClip, settings: RowSettings) -> dict[str, Any]:
    if len(clip.references) == 1:
        (picture, mask), names = clip.references[0], ("reference", "reference_mask")
        found = zip(names, (picture, mask), strict=True)
        return {name: _below(path, settings) for name, path in found if path is not None}
    return {
        "references": [
            {"picture": _below(picture, settings)} | ({} if mask is None else {"mask": _below(mask, settings)})
            for picture, mask in clip.references
        ]
    }


def _number(clip: FoundClip, column: str) -> int:
    try:
        return int(clip.columns.get(column, 0))
    except (TypeError, ValueError):
        raise InputError(f"{clip.video}: {column} must be a number.") from None


def _own_reference(clip: FoundClip, middle: int, part: Windows, settings: RowSettings) -> dict[str, Any] | None:
    """Cut another moment out of the part of the clip that its columns name; None where no person is visible.

    It is as far from the middle of the row's window as that part allows. The picture is its own target: of a cut-out,
    the frame that it is from shows other things in other places.
    """
    crop, begin = clip.columns.get("crop"), _number(clip, "companions_start")
    for quarter in (2, 1, 3, 0):
        moment = part.first + (middle - part.first + part.length * quarter // 4) % max(part.length, 1)
        name = f"{moment:08d}"
        if clip.mask is not None and moment < begin:
            continue  # nothing is known of the person there
        try:
            picture = read_frames(clip.video, [moment])[0].permute(1, 2, 0).numpy()
            mask = None if clip.mask is None else read_masks(clip.mask, [moment - begin])[0, 0].numpy()
        except MediaError:
            return {"reference": _below(clip.video, settings)}  # the check names what is wrong with the clip
        if mask is not None and mask.shape != picture.shape[:2]:
            mask = None  # the check names it
        if isinstance(crop, list | tuple) and len(crop) == 4:
            x0, y0, x1, y1 = (int(side) for side in crop)
            picture, mask = picture[y0:y1, x0:x1], None if mask is None else mask[y0:y1, x0:x1]
            name += f"_{x0}_{y0}_{x1}_{y1}"
        if mask is None:
            return _written(clip, name, settings, picture, None)
        person = mask > 127
        if person.mean() >= _PERSON:
            rows, columns = _box(person)
            return _written(clip, name, settings, picture[rows, columns], mask[rows, columns])
    return None


def _box(person: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns of a person, with a margin."""
    found = []
    for axis, length in ((1, person.shape[0]), (0, person.shape[1])):
        inside = np.flatnonzero(person.any(axis=axis))
        margin = max(8, round(_MARGIN * (inside[-1] - inside[0] + 1)))
        found.append(slice(max(0, int(inside[0]) - margin), min(length, int(inside[-1]) + margin + 1)))
    return found[0], found[1]


def _written(
    clip: FoundClip, name: str, settings: RowSettings, picture: NDArray[np.uint8], mask: NDArray[np.uint8] | None
) -> dict[str, Any]:
    """The columns of a reference, whose files are written: rows with one moment and crop have one picture."""
    place = settings.made / _short(clip.video.relative_to(settings.root).as_posix()) / f"{name}.jpg"
    place.parent.mkdir(parents=True, exist_ok=True)
    _write(place, np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    columns = {"reference": _below(place, settings), "target_frame": _below(place, settings)}
    if mask is not None:
        beside = place.with_name(f"{name}_mask.png")
        _write(beside, mask, [])
        columns["reference_mask"] = _below(beside, settings)
    return columns


def _write(path: Path, picture: NDArray[np.uint8], options: list[int]) -> None:
    """Write a picture, whole or not at all."""
    done, content = cv2.imencode(path.suffix, picture, options)
    if not done:
        raise OSError(f"{path} could not be written.")
    with whole_file(path) as beside:
        beside.write_bytes(content.tobytes())


def _below(path: Path, settings: RowSettings) -> str:
    return path.relative_to(settings.root).as_posix()


def _short(name: str) -> str:
    """A name that leaves room for a number in an id."""
    if len(name) <= 180:
        return name
    return f"{name[:160]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _split(rows: Sequence[dict[str, Any]], validation: float) -> None:
    """Put a share of the sources into `val`: rows of one source, or with a picture in common, stay together.

    Which ones is a function of their names. Rows whose split is given keep it, and one source alone is not split.
    """
    groups: dict[str, str] = {}

    def root(name: str) -> str:
        while groups.setdefault(name, name) != name:
            name = groups[name]
        return name

    for row in rows:
        pictures = [row.get("reference"), *(entry["picture"] for entry in _entries(row))]
        for picture in filter(None, pictures):
            groups[root(f"picture {picture}")] = root(f"source {row['source']}")
        root(f"source {row['source']}")
    owners = [root(f"source {row['source']}") for row in rows]
    free = sorted(
        {owner for owner, row in zip(owners, rows, strict=True) if "split" not in row},
        key=lambda owner: hashlib.sha256(owner.encode()).hexdigest(),
    )
    count = 0 if len(free) < 2 or not validation else max(1, round(validation * len(free)))
    held_out = set(free[:count])
    for owner, row in zip(owners, rows, strict=True):
        row.setdefault("split", "val" if owner in held_out else "train")


def _entries(row: dict[str, Any]) -> list[dict[str, Any]]:
    given = row.get("references", ())
    return (
        [entry for entry in given if isinstance(entry, dict) and "picture" in entry] if isinstance(given, list) else []
    )
