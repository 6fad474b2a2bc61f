"""`contextanyone inspect`: describes a weight file from its header, or a clip from its generation record."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, InputError
from ..media.read_video import PICTURES
from ..media.video_io import ENDINGS, ending_of, read_metadata
from .parsing import COMPONENTS, Parser, regular_path

if TYPE_CHECKING:
    from ..weights.checkpoint import Description

SHOWN_NAMES = 20


def inspect(argv: Sequence[str]) -> int:
    """Run the command; prints a report to stdout.

    Raises: InputError or CheckpointError for a file that cannot be read.
    """
    parser = Parser("contextanyone inspect", "Describe a weight file, or how a video was made; nothing is loaded.")
    parser.add_argument(
        "file", type=regular_path, help="a weight file, a folder of them, or a video, folder of frames or contact sheet"
    )
    path: Path = parser.parse(argv).file
    if path.is_dir() and not any(path.glob("frame_*.png")):
        reports = list(_folder(path))
    elif path.is_dir() or ending_of(path) in (*ENDINGS, ".png"):
        reports = [json.dumps(read_metadata(path), indent=2, ensure_ascii=False)]
    elif ending_of(path) in PICTURES:
        raise InputError(f"{path} does not say how it was made: clips are {', '.join(ENDINGS)}, contact sheets .png.")
    else:
        reports = ["\n".join(_describe(path))]
    sys.stdout.write(_printable("\n\n".join(reports)) + "\n")
    return 0


def _folder(path: Path) -> Iterator[str]:
    """A report on each model in a folder, including the components of a diffusers pipeline."""
    from ..weights.locate import weight_files

    models = weight_files(path)
    models += [inner for inner in sorted(path.iterdir()) if inner.is_dir() and weight_files(inner)]
    if not models and any(path.glob("*.safetensors")):
        models = [path]  # shards without an index; opening them reports the error
    if not models:
        raise InputError(
            f"{path} is a folder without frame_*.png or weight files; give a video, a folder of frames or of weights."
        )
    for model in models:
        yield "\n".join(_describe(model) if len(models) == 1 else _described_or_not(model))
    absent = [f"{name}.safetensors" for name in COMPONENTS if _is_absent(path, name)]
    if len(absent) < len(COMPONENTS):
        yield f"missing files: {', '.join(absent) or 'none'}"


def _described_or_not(path: Path) -> list[str]:
    """One of several reports; a damaged file becomes a line in it, so that the others are still shown."""
    try:
        return _describe(path)
    except CheckpointError as error:
        return [f"file:        {path}", f"unreadable:  {error}"]


def _is_absent(folder: Path, component: str) -> bool:
    """Whether `generate` finds no file for a component; an ambiguous or damaged file counts as present."""
    from ..weights.locate import find_component

    try:
        return find_component(folder, component) is None
    except CheckpointError:
        return False


def _describe(path: Path) -> list[str]:
    from ..weights.checkpoint import describe

    found = describe(path)
    what = found.recognised
    lines = [
        f"file:        {path}",
        f"kind:        {what.kind or 'unknown'}" + (" (by its tensor names)" if what.kind and not what.stated else ""),
        f"this is:     {what}",
        f"size:        {found.size_bytes:,} bytes",
        f"parameters:  {found.parameters:,}",
        f"dtype:       {', '.join(f'{name} ({count:,})' for name, count in sorted(what.dtypes.items())) or 'none'}",
        f"config:      {_origin(found)}".rstrip(),
    ]
    lines += [f"  {name} = {json.dumps(value)}" for name, value in sorted(found.config.items())]
    lines += _parts(found)
    extra = {key: value for key, value in sorted(found.metadata.items()) if key not in ("format", "kind", "config")}
    return lines + [f"{key}: {value}" for key, value in extra.items()]


def _origin(found: Description) -> str:
    if "config" in found.metadata:
        return ""
    return "inferred from the shapes" if found.config else "none in the header"


def _parts(found: Description) -> list[str]:
    from ..checkpoints.expected import compare_file

    differences = compare_file(found)
    if differences is None:
        return ["parts:       not known, without a config"]
    if not differences:
        return ["parts:       complete"]
    named = (
        ("missing", differences.missing),
        ("unknown", differences.unknown),
        ("wrong shape", differences.wrong_shape),
    )
    return [line for what, names in named for line in _listed(what, names)]


def _listed(what: str, names: Sequence[str]) -> Iterable[str]:
    yield f"{what + ':':<12} {len(names) or 'none'}"
    yield from (f"  {name}" for name in names[:SHOWN_NAMES])
    if len(names) > SHOWN_NAMES:
        yield f"  and {len(names) - SHOWN_NAMES} more"


def _printable(text: str) -> str:
    """Text of an untrusted file without terminal control characters."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
