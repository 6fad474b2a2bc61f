"""OpenS2V-Eval's scores from the parts of a clip: as published, and corrected.

The parts come from the benchmark's own models (a file of them is given), which are not part of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from contextanyone_core.errors import InputError
from evaluation.json_file import read_object
from evaluation.metrics.catalogue import GIVEN_PARTS

WEIGHTS = {
    "aesthetics": 0.16,
    "smoothness": 0.06,
    "amplitude": 0.02,
    "face": 0.20,
    "gme": 0.12,
    "nexus": 0.20,
    "natural": 0.24,
}
"""Of the leaderboard's total, which is that sum of a model's means; found from its published rows by least squares
(residual below 0.01 points)."""

COLUMNS = {part: "nexus_mean" if part == "nexus" else f"opens2v_{part}" for part in WEIGHTS}
"""The metric of each part of the total."""

Share = Annotated[float, Field(ge=0, le=1)]


class Parts(BaseModel):
    """The parts of one clip, each from 0 to 1; what was not computed is left out.

    Attributes:
        nexus_frames: for each of the frames, the similarity of the subject's crop to the reference; null for a frame
            where the subject was not detected.
        face_frames: for each of the frames, the similarity of the face; null without one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    aesthetics: Share | None = None
    smoothness: Share | None = None
    amplitude: Share | None = None
    gme: Share | None = None
    natural: Share | None = None
    nexus_frames: list[Share | None] | None = None
    face_frames: list[Annotated[float, Field(ge=-1, le=1)] | None] | None = None


def read_parts(path: Path) -> dict[str, dict[str, Parts]]:
    """Read {system: {item: parts}}. Raises InputError where the file cannot be read or a part is none."""
    try:
        return TypeAdapter(dict[str, dict[str, Parts]]).validate_python(read_object("--parts", path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"--parts {path}, {where}: {first['msg']}.") from None


def scores(parts: Parts) -> dict[str, float]:
    """A clip's numbers, by the names of the tables: those of `COLUMNS` and `nexus`; without what is not given."""
    given = {COLUMNS[name]: getattr(parts, name) for name in GIVEN_PARTS}
    found: dict[str, float] = {name: value for name, value in given.items() if value is not None}
    if parts.nexus_frames is not None:
        found["nexus"], found["nexus_mean"] = nexus_published(parts.nexus_frames), nexus_mean(parts.nexus_frames)
    if parts.face_frames is not None:
        found["opens2v_face"] = face_published(parts.face_frames)
    return found


def face_published(frames: Sequence[float | None]) -> float:
    """FaceSim as published: frames without a face are skipped, what is below 0 is cut to 0, zeros are dropped.

    So a clip that turns away for a while loses nothing (the `face_..._all` of this project is the other rule); one that
    shows no face at all has 0.
    """
    kept = [value for value in frames if value is not None and value > 0]
    return sum(kept) / len(kept) if kept else 0.0


def nexus_mean(frames: Sequence[float | None]) -> float:
    """The mean over frames with a hit; 0 without any."""
    hits = [value for value in frames if value is not None]
    return sum(hits) / len(hits) if hits else 0.0


def nexus_published(frames: Sequence[float | None]) -> float:
    """NexusScore by the rule of its script: the mean of the hits, divided by their number a second time.

    So a subject that is found in fewer frames has a higher score (OpenS2V-Nexus, issue 36). Simplified: one similarity
    a frame is read. The script, `eval/get_nexusscore.py`, has one for every box of every reference picture, leaves out
    those of which detector or text are unsure, and divides by the number of pairs of frame and picture with any box.
    The two are equal where one picture is shown, each frame has one box at most, and none is left out.
    """
    hits = sum(value is not None for value in frames)
    return nexus_mean(frames) / hits if hits else 0.0
