"""The data contract: a manifest, one JSON object per line, that lists what every training pair is made of.

Paths are relative to the manifest's folder. Nothing is left out silently: a line that cannot be used becomes a `Drop`
with one of `REASONS`, and `drop_table` counts them. This file imports nothing else of training.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError, did_you_mean

Split = Literal["train", "val", "test"]

REASONS = {
    "not_json": "the line is not a JSON object",
    "bad_row": "a column is missing, unknown or has an impossible value",
    "duplicate_id": "an earlier line has the same id",
    "missing_file": "a file that the row names does not exist",
    "decode_error": "a video or picture cannot be decoded",
    "hash_mismatch": "a file is not the one whose SHA-256 the row gives",
    "duplicate_content": "an earlier row has the same part of the same video, and the same references",
    "size_mismatch": "width, height, crop or num_frames do not fit the video",
    "mask_mismatch": "a mask or pose does not fit what it describes",
    "too_short": "fewer frames at 16 a second than the shortest bucket has",
    "too_small": "every bucket would enlarge the picture by more than buckets.max_upscale",
    "prompt_too_long": "a prompt has more tokens than the model reads",
    "empty_mask": "a mask is black in all that is used of it",
    "not_finite": "an encoder gave values that are not finite in half precision",
}


def inside(path: str) -> str:
    """A path that stays below the folder it starts from, as it is. Raises: ValueError for any other."""
    parts = PurePosixPath(path).parts
    drive = PureWindowsPath(path).drive  # C:/x leaves the folder on Windows
    if not path or drive or path.startswith(("/", "~")) or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError("it must be a path below the manifest's folder, with / between names")
    return path


RelativePath = Annotated[str, AfterValidator(inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Columns(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Edit(_Columns):
    """How the reference was made from the ground-truth frame."""

    model: str
    instruction: str
    seed: int | None = None


class Hashes(_Columns):
    """SHA-256 of files, in hexadecimal; a folder's is that of its files one after the other, sorted by name."""

    video: Sha256 | None = None
    reference: Sha256 | None = None


class Reference(_Columns):
    """One picture of the person, or of something of theirs, that the model is given.

    Attributes:
        picture: the file. mask: where the subject is in it: a grey picture of its size, white on black.
        role: what it shows, in a word or two: "person", "face", "back", "coat".
        prompt: how the subject looks in it. The references' prompts, joined by a space, stand in for an empty
            `prompt_first`: the model reads one text for all references.
        character: the `name` of one of the row's characters.
        sha256: hash that the picture must have.
    """

    picture: RelativePath
    mask: RelativePath | None = None
    role: str = Field(default="person", min_length=1, max_length=100)
    prompt: str = ""
    character: str | None = None
    sha256: Sha256 | None = None


class Character(_Columns):
    """One of several people of a clip. `mask` and `pose` are as the row's own columns, of this person alone.

    Attributes:
        name: unique in the row; references name it.
        words: the words of the prompts that mean this person, such as "the woman in red".
    """

    name: str = Field(min_length=1, max_length=100)
    words: str = ""
    mask: RelativePath | None = None
    pose: RelativePath | None = None


class ManifestRow(_Columns):
    """One training pair: a clip, and pictures of the same person in another action, place and light.

    A mask is a video, a folder of grey pictures or one grey picture, of the size and with the frames of `video`: white
    where the person is, black elsewhere. A pose is a safetensors file with the tensor `keypoints`, float32
    (T, K, 3): x, y and score of each point in pixels of the video as it is shown (upright, before `crop`), frame by
    frame as `video`. Its metadata holds `layout` (body14, coco17, body18 or wholebody133, which gives K), `width`,
    `height` and `fps`, all of the video. A file without metadata, or without scores (T, K, 2), is taken as the column
    `pose` alone.

    Attributes:
        id: unique name; every report and log names it.
        video: a video file, a folder of pictures (sorted by name), or one picture (a clip of one frame).
        start_frame, num_frames: which of the video's own frames belong to the clip; None is all to the end.
        fps: frames a second; None takes the file's times (a folder of pictures: 16).
        width, height: pixels, upright; checked where given.
        crop: x0, y0, x1, y1 in pixels: what is used of each frame, x1 and y1 exclusive. None is all of it.
        reference: the picture of the person that the model is given, or
        references: several of them. A row has one of the two columns.
        target_frame: the unedited picture that the first reference was made from, or
        target_frame_index: the number, in the video, of the frame that it was made from. Neither: the clip's first
            frame is what the reference stream must reconstruct. Further references are their own targets.
        mask: where the person is. reference_mask: the same of `reference`, a picture of its size.
        pose: the person's keypoints.
        companions_start: the frame of the video that masks and poses of the clip begin with, those of characters too.
        characters: the people of a clip with more than one.
        prompt_first: how the person looks in the reference and in the first frame.
        prompt_later: what happens. One of the two may be empty.
        edit: how the reference was made. scores: any measurements, by name.
        source, license: where the video is from and what allows its use; "unknown" must be stated.
        split: which part of the data it belongs to.
        sha256: hashes that the files must have.
    """

    id: str = Field(min_length=1, max_length=200)
    video: RelativePath
    start_frame: int = Field(default=0, ge=0)
    num_frames: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0, le=1000)
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    crop: tuple[int, int, int, int] | None = None
    reference: RelativePath | None = None
    references: tuple[Reference, ...] = Field(default=(), max_length=16)
    target_frame: RelativePath | None = None
    target_frame_index: int | None = Field(default=None, ge=0)
    mask: RelativePath | None = None
    reference_mask: RelativePath | None = None
    pose: RelativePath | None = None
    companions_start: int = Field(default=0, ge=0)
    characters: tuple[Character, ...] = Field(default=(), max_length=16)
    prompt_first: str = ""
    prompt_later: str = ""
    edit: Edit | None = None
    scores: dict[str, float] = {}
    source: str = Field(min_length=1)
    license: str = Field(min_length=1)
    split: Split = "train"
    sha256: Hashes = Hashes()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.first_text.strip() and not self.prompt_later.strip():
            raise ValueError("prompt_first and prompt_later are both empty; one of them must describe the pair")
        if self.target_frame is not None and self.target_frame_index is not None:
            raise ValueError("target_frame and target_frame_index are both given; give one of the two, or neither")
        if self.crop is not None:
            x0, y0, x1, y1 = self.crop
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"crop is {list(self.crop)}; it must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
        return self

    @model_validator(mode="after")
    def _references_fit(self) -> Self:
        if self.reference is None and not self.references:
            raise ValueError("reference is missing; give the column reference, or references with a list")
        if self.references and (self.reference or self.reference_mask or self.sha256.reference):
            raise ValueError(
                "references is given beside reference, reference_mask or sha256.reference; put those into its entries, "
                "as picture, mask and sha256"
            )
        names = [character.name for character in self.characters]
        if len(set(names)) < len(names):
            raise ValueError("two characters have one name; each needs its own")
        for reference in self.references:
            if reference.character is not None and reference.character not in names:
                raise ValueError(f"a reference is of the character {reference.character!r}, which characters lacks")
        return self

    @property
    def pictures(self) -> tuple[Reference, ...]:
        """The references, at least one, whichever column gives them."""
        if self.reference is None:
            return self.references
        return (Reference(picture=self.reference, mask=self.reference_mask, sha256=self.sha256.reference),)

    @property
    def first_text(self) -> str:
        """`prompt_first`, or where it is empty the references' own prompts, joined by a space."""
        if self.prompt_first.strip():
            return self.prompt_first
        return " ".join(reference.prompt.strip() for reference in self.references if reference.prompt.strip())

    def paths(self) -> dict[str, str]:
        """The files that the row names, by column; those of lists as `references.0.picture`."""
        columns = ("video", "reference", "target_frame", "mask", "reference_mask", "pose")
        named = {column: getattr(self, column) for column in columns}
        for index, reference in enumerate(self.references):
            named |= {f"references.{index}.{name}": getattr(reference, name) for name in ("picture", "mask")}
        for index, character in enumerate(self.characters):
            named |= {f"characters.{index}.{name}": getattr(character, name) for name in ("mask", "pose")}
        return {column: path for column, path in named.items() if path is not None}


@dataclass(frozen=True)
class Drop:
    """A row that is not used: its line (from 1) and id, one of `REASONS`, and what exactly was found."""

    line: int
    id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Line:
    """A row and the line (from 1) of the manifest that it is in."""

    number: int
    row: ManifestRow

    def drop(self, reason: str, detail: str) -> Drop:
        """This row as one that is not used."""
        return Drop(self.number, self.row.id, reason, detail)


@dataclass(frozen=True)
class Manifest:
    """What a manifest holds: `folder` that its paths start from, usable `lines`, and what was dropped."""

    folder: Path
    lines: list[Line]
    dropped: list[Drop]

    def of_split(self, split: Split) -> Manifest:
        """Only the rows of one split; what was dropped stays in the account.

        Raises:
            InputError: there are rows, and all are of other splits.
        """
        lines = [line for line in self.lines if line.row.split == split]
        if self.lines and not lines:
            counts = Counter(line.row.split for line in self.lines)
            others = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
            raise InputError(
                f"The manifest in {self.folder} has no row of the split {split}, but {others}; choose one by "
                "part.data.split, or change the column split of some rows."
            )
        return Manifest(self.folder, lines, self.dropped)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; files that it names are not opened (`training.data.check.check_files` does).

    Raises:
        InputError: there is no such file, it is UTF-16, or it holds no line at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"The manifest {path} does not exist.") from None
    except OSError as error:
        raise InputError(f"The manifest {path} cannot be read: {error.strerror}.") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"The manifest {path} is UTF-16 text; save it as UTF-8.")
    lines: list[Line] = []
    dropped: list[Drop] = []
    seen: dict[str, int] = {}
    for number, text in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not text.strip():
            continue
        found = _read_line(number, text)
        if isinstance(found, Line) and found.row.id in seen:
            found = found.drop("duplicate_id", f"line {seen[found.row.id]} has the id {found.row.id}")
        if isinstance(found, Drop):
            dropped.append(found)
        else:
            seen[found.row.id] = number
            lines.append(found)
    if not lines and not dropped:
        raise InputError(f"The manifest {path} is empty; it needs one JSON object per line.")
    return Manifest(path.parent, lines, dropped)


def _read_line(number: int, content: bytes) -> Line | Drop:
    try:
        data = json.loads(content.decode())
    except UnicodeDecodeError as error:
        return Drop(number, "", "not_json", f"it is not UTF-8 text ({error.reason} at byte {error.start})")
    except RecursionError:
        return Drop(number, "", "not_json", "its brackets are nested too deeply")
    except ValueError as error:
        return Drop(number, "", "not_json", str(error))
    if not isinstance(data, dict):
        return Drop(number, "", "not_json", f"it is {type(data).__name__}")
    name = data.get("id")
    try:
        return Line(number, ManifestRow.model_validate_json(content))
    except ValidationError as error:
        detail = _printable(" ".join(_describe(found) for found in error.errors()))
        found = Drop(number, _printable(name) if isinstance(name, str) else "", "bad_row", detail)
        if error.errors()[0]["type"] == "json_invalid":  # json took it: half of a surrogate pair is what it lets pass
            return replace(found, reason="not_json", detail=f"half of a surrogate pair is no character: {detail}")
        return found


def parse_row(data: object) -> ManifestRow:
    """A row of columns and values, numbers as text too.

    Raises:
        InputError: a column is missing, unknown or has an impossible value.
    """
    try:
        return ManifestRow.model_validate(data)
    except ValidationError as error:
        raise InputError(_printable(" ".join(_describe(found) for found in error.errors()))) from None


_PARTS: dict[str, type[BaseModel]] = {
    "edit": Edit,
    "sha256": Hashes,
    "references": Reference,
    "characters": Character,
}


def _describe(details: ErrorDetails) -> str:
    """What is wrong with a column, in one sentence."""
    names = [str(name) for name in details["loc"]]
    message = details["msg"].removeprefix("Value error, ").rstrip(".")
    if not names:  # a rule over several columns names them itself
        return f"{message}."
    column = ".".join(names)
    if details["type"] == "extra_forbidden":
        model = ManifestRow if len(names) == 1 else _PARTS[names[0]]
        known = ", ".join(model.model_fields)
        near = did_you_mean(names[-1], model.model_fields)
        return f"{column} is not a column." + (near or f" Known are {known}.")
    if details["type"] == "missing":
        return f"{column} is missing."
    return f"{column} is {details['input']!r:.80}: {message[:1].lower()}{message[1:]}."


def _printable(text: str) -> str:
    """A text that can be written as UTF-8: halves of surrogate pairs as backslash and digits."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Write rows as a manifest, whole or not at all; columns that are not given are left out."""
    write_lines(path, (row.model_dump_json(exclude_defaults=True) for row in rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write text lines, whole or not at all."""
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def drop_table(kept: int, dropped: Sequence[Drop]) -> str:
    """The account in words: rows kept, rows dropped by reason with the first of each."""
    lines = [f"{kept:>8}  kept", f"{len(dropped):>8}  dropped"]
    for reason, count in Counter(drop.reason for drop in dropped).most_common():
        first = next(drop for drop in dropped if drop.reason == reason)
        named = f" ({first.id})" if first.id else ""
        lines += [f"{count:>8}    {reason}: {REASONS[reason]}", f"{'':>14}line {first.line}{named}: {first.detail}"]
    return "\n".join(lines) + "\n"
