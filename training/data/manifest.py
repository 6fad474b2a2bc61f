"""The data contract: a manifest, one JSON object per line, that says what every training pair is made of.

Paths are relative to the manifest's folder. Nothing is left out silently: a line that cannot be used becomes a `Drop`
with one of `REASONS`, and `drop_table` counts them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.errors import InputError
from training.settings import describe_errors

Split = Literal["train", "val", "test"]

REASONS = {
    "not_json": "the line is not a JSON object",
    "bad_row": "a column is missing, unknown or has an impossible value",
    "duplicate_id": "an earlier line has the same id",
    "missing_file": "a file that the row names does not exist",
    "decode_error": "a video or picture cannot be decoded",
    "hash_mismatch": "a file is not the one whose SHA-256 the row gives",
    "duplicate_content": "an earlier row has the same part of the same video, and the same reference",
    "size_mismatch": "width, height, crop or num_frames do not fit the video",
    "mask_mismatch": "mask, reference_mask or pose do not fit what they describe",
    "too_short": "fewer frames at 16 a second than the shortest bucket has",
    "too_small": "every bucket would enlarge the picture by more than is allowed",
    "prompt_too_long": "a prompt has more tokens than the model reads",
    "not_finite": "an encoder gave values that are not finite in half precision",
}


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not path or path.startswith(("/", "~")) or ".." in parts or "\\" in path:
        raise ValueError("it must be a path below the manifest's folder, with / between names")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
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


class ManifestRow(_Columns):
    """One training pair: a clip, and a picture of the same person in another action, place and light.

    Attributes:
        id: unique name; it stands in every report and log.
        video: a video file, a folder of pictures (sorted by name), or one picture (a clip of one frame).
        start_frame, num_frames: which of the video's own frames belong to the clip; None is all to the end.
        fps: frames a second; None takes the file's times (a folder of pictures: 16).
        width, height: pixels, upright; checked where given.
        crop: x0, y0, x1, y1 in pixels: what is used of each frame, x1 and y1 exclusive. None is all of it.
        reference: the picture of the person that the model is given.
        target_frame: the unedited picture that the reference was made from, or
        target_frame_index: the number, in the video, of the frame that it was made from. Neither: the clip's first
            frame is what the reference stream must reconstruct.
        mask: where the person is, frame by frame as `video` (video, folder of pictures or one picture): white on black.
        reference_mask: the same of the reference.
        pose: safetensors file with `keypoints`, float32 (frames, points, 2 or 3): x and y in the video's pixels, and
            confidence; frame by frame as `video`.
        prompt_first: how the person looks in the reference and in the first frame.
        prompt_later: what happens. One of the two may be empty.
        edit: how the reference was made. scores: any measurements, by name.
        source, license: where the video is from and what allows its use; "unknown" must be said.
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
    reference: RelativePath
    target_frame: RelativePath | None = None
    target_frame_index: int | None = Field(default=None, ge=0)
    mask: RelativePath | None = None
    reference_mask: RelativePath | None = None
    pose: RelativePath | None = None
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
        if not self.prompt_first.strip() and not self.prompt_later.strip():
            raise ValueError("prompt_first and prompt_later are both empty; one of them must describe the pair")
        if self.target_frame is not None and self.target_frame_index is not None:
            raise ValueError("target_frame and target_frame_index are both given; give one of the two, or neither")
        if self.crop is not None:
            x0, y0, x1, y1 = self.crop
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"crop is {list(self.crop)}; it must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
        return self

    def paths(self) -> dict[str, str]:
        """The files that the row names, by column."""
        columns = ("video", "reference", "target_frame", "mask", "reference_mask", "pose")
        return {column: path for column in columns if (path := getattr(self, column)) is not None}


@dataclass(frozen=True)
class Drop:
    """A row that is not used: its line (from 1) and id, one of `REASONS`, and what exactly was found."""

    line: int
    id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Line:
    """A row and the line (from 1) of the manifest that it stands in."""

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
        """Only the rows of one split; what was dropped stays in the account."""
        return Manifest(self.folder, [line for line in self.lines if line.row.split == split], self.dropped)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; files that it names are not looked at (`training.data.check.check_files` does).

    Raises:
        InputError: there is no such file, it is not text, or it holds no line at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"The manifest {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The manifest {path} cannot be read: {error}.") from None
    lines: list[Line] = []
    dropped: list[Drop] = []
    seen: dict[str, int] = {}
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        found = _read_line(number, content)
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


def _read_line(number: int, content: str) -> Line | Drop:
    try:
        data = json.loads(content)
    except ValueError as error:
        return Drop(number, "", "not_json", str(error))
    if not isinstance(data, dict):
        return Drop(number, "", "not_json", f"it is {type(data).__name__}")
    name = data.get("id")
    try:
        return Line(number, ManifestRow.model_validate_json(content))
    except ValidationError as error:
        detail = describe_errors(error, ManifestRow, "")
        return Drop(number, name if isinstance(name, str) else "", "bad_row", detail)


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
