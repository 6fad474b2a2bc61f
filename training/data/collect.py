"""A folder of clips as people have it: what belongs to each clip, by name and by a table."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contextanyone_core.errors import InputError
from contextanyone_core.media.read_video import PICTURES
from training.data.manifest import ManifestRow
from training.data.video import VIDEO_ENDINGS

_TABLES = ("captions", "metadata")
_TABLE_FORMS = (".csv", ".tsv", ".jsonl", ".json")
_ALIASES = {"file_name": "video", "caption": "prompt_later", "text": "prompt_later", "prompt": "prompt_later"}
_MASK = re.compile(r"(.+)[._-]mask")
_REFERENCE = re.compile(r"(.+)[._-]ref(?:erence)?[._-]?\d*")
_SHARED = re.compile(r"ref(?:erence)?[._-]?\d*")


@dataclass(frozen=True)
class FoundClip:
    """A video and what belongs to it.

    Attributes:
        video: the file. columns: of its rows, as captions and tables give them; each at least one prompt.
        references: pictures, each with its mask where there is one. mask: of the video.
        shared: whether the references are those of all clips of the folder.
    """

    video: Path
    columns: dict[str, Any]
    references: tuple[tuple[Path, Path | None], ...] = ()
    mask: Path | None = None
    shared: bool = False


@dataclass
class Collected:
    """Clips in the order of their paths, and the videos that are left out, by reason."""

    clips: list[FoundClip] = field(default_factory=list)
    left_out: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


def collect(folder: Path, apart: Path) -> Collected:
    """Find the clips of a folder and its subfolders, with captions, reference pictures and masks.

    A clip `a.mp4` has its caption in `a.txt` (a paragraph, or two: how the person looks, and what happens), in `a.json`
    (columns of a row, or `caption`) or in one table `captions.csv` (.tsv, .jsonl, .json; or `metadata`) in `folder`
    with a column `video`. Its references are `a.png`, `a_ref.png`, `a_reference_2.jpg`, else `reference.png` and the
    like in its folder, which serve all clips there. `a_mask` is its mask: a video, a picture or a folder of pictures;
    `a_ref_mask.png` that of the reference.

    Args:
        apart: a folder that is passed over.

    Raises:
        InputError: there is no such folder, no video in it, or a table or caption cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the clips.")
    paths = [path for path in sorted(folder.rglob("*")) if _counts(path, folder, apart)]
    table = _read_table(folder, paths)
    videos = [path for path in paths if path.suffix.lower() in VIDEO_ENDINGS and not _MASK.fullmatch(path.stem)]
    if not videos:
        raise InputError(f"{folder} holds no video file ({', '.join(sorted(VIDEO_ENDINGS))}).")
    pictures, masks = _pictures(paths, videos), _masks(paths)
    found = Collected()
    for video in videos:
        captions = table.pop(video, None) or _caption(video)
        if not captions:
            found.left_out["no caption beside it, and no line in the table"].append(video)
        own, shared = pictures[video], pictures[video.parent]
        references = tuple((path, masks.get(path.with_suffix(""))) for path in own or shared)
        mask = masks.get(video.with_suffix(""))
        found.clips += [FoundClip(video, columns, references, mask, not own) for columns in captions]
    for missing in table:
        found.left_out["the table names it, and there is no such video"].append(missing)
    return found


def _counts(path: Path, folder: Path, apart: Path) -> bool:
    """Whether a path is used: nothing hidden, nothing inside a folder of masks, nothing in `apart`."""
    parts = path.relative_to(folder).parts
    inside_mask = any(_MASK.fullmatch(part) for part in parts[:-1])
    return not inside_mask and not any(part.startswith(".") for part in parts) and apart not in (path, *path.parents)


def _masks(paths: Iterable[Path]) -> dict[Path, Path]:
    """Masks by the path, without ending, of what they describe."""
    found = {}
    for path in paths:
        name = _MASK.fullmatch(path.name if path.is_dir() else path.stem)
        if name and (path.is_dir() or path.suffix.lower() in (*PICTURES, *VIDEO_ENDINGS)):
            found[path.with_name(name[1])] = path
    return found


def _pictures(paths: Iterable[Path], videos: Iterable[Path]) -> defaultdict[Path, list[Path]]:
    """Reference pictures by their video, and those of a whole folder by the folder."""
    by_stem = {video.with_suffix(""): video for video in videos}
    found = defaultdict[Path, list[Path]](list)
    for path in paths:
        if path.suffix.lower() not in PICTURES or not path.is_file() or _MASK.fullmatch(path.stem):
            continue
        named = _REFERENCE.fullmatch(path.stem)
        video = by_stem.get(path.with_suffix("")) or (by_stem.get(path.with_name(named[1])) if named else None)
        if video is not None:
            found[video].append(path)
        elif _SHARED.fullmatch(path.stem):
            found[path.parent].append(path)
    return found


def _caption(video: Path) -> list[dict[str, Any]]:
    """The columns that the files beside a video give; none without a caption."""
    for form, read in ((".json", _json_caption), (".txt", _text_caption)):
        path = video.with_suffix(form)
        if path.is_file():
            return [columns for columns in read(path) if _has_prompt(columns)]
    return []


def _text_caption(path: Path) -> list[dict[str, Any]]:
    first, _, later = _text(path).strip().replace("\r\n", "\n").partition("\n\n")
    prompts = (first, later) if later.strip() else ("", first)
    return [
        {name: " ".join(text.split()) for name, text in zip(("prompt_first", "prompt_later"), prompts, strict=True)}
    ]


def _json_caption(path: Path) -> list[dict[str, Any]]:
    data = _parsed(path, _text(path))
    return [_columns(path, row) for row in (data if isinstance(data, list) else [data])]


def _has_prompt(columns: dict[str, Any]) -> bool:
    return any(str(columns.get(name, "")).strip() for name in ("prompt_first", "prompt_later", "references"))


def _read_table(folder: Path, paths: Iterable[Path]) -> dict[Path, list[dict[str, Any]]]:
    """The rows of the folder's table by video; nothing where there is no table."""
    tables = [p for p in paths if p.parent == folder and p.stem in _TABLES and p.suffix.lower() in _TABLE_FORMS]
    if len(tables) > 1:
        raise InputError(f"{folder} holds {tables[0].name} and {tables[1].name}; leave one table.")
    rows: dict[Path, list[dict[str, Any]]] = {}
    for path in tables:
        for data in _table_rows(path):
            columns = _columns(path, data)
            name = columns.pop("video", None)
            if not isinstance(name, str) or not name:
                raise InputError(f"{path} has a row without a video; the column video (or file_name) must name it.")
            if _has_prompt(columns):
                rows.setdefault(folder / name, []).append(columns)
    return rows


def _table_rows(path: Path) -> list[object]:
    text, form = _text(path), path.suffix.lower()
    if form == ".json":
        data = _parsed(path, text)
        return data if isinstance(data, list) else [data]
    if form == ".jsonl":
        return [_parsed(path, line) for line in text.split("\n") if line.strip()]
    try:
        return list(_cells(path, text, "\t" if form == ".tsv" else ","))
    except csv.Error as error:
        raise InputError(f"{path} is no table: {error}.") from None


def _cells(path: Path, text: str, delimiter: str) -> Iterator[dict[str | Any, Any]]:
    """The rows of a .csv or .tsv by the header's names."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    for row in reader:
        if reader.restkey in row:
            count, names = len(row[reader.restkey]), len(reader.fieldnames or ())
            raise InputError(
                f"{path}: the row that ends in line {reader.line_num} has {names + count} cells, the header {names}; "
                f"put captions with {'tabs' if delimiter != ',' else 'commas'} into double quotes."
            )
        yield row


def _columns(path: Path, data: object) -> dict[str, Any]:
    """A row of a table under the manifest's names; empty cells are left out."""
    if not isinstance(data, dict):
        raise InputError(f"{path} holds {type(data).__name__}; it needs an object with columns for each clip.")
    columns = {}
    for name, value in data.items():
        column = _ALIASES.get(name, name)
        if column not in ManifestRow.model_fields or column == "id":
            known = ", ".join([*ManifestRow.model_fields, *_ALIASES])
            raise InputError(f"{path} has {name!r}, which is not a column. Known are {known}.")
        if value is not None and value != "":
            columns[column] = value
    return columns


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}.") from None


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from None
