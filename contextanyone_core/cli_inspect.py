"""`contextanyone inspect`: what a weight file is, from its header alone, or how a clip was made, from its metadata."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_options import PARTS, Parser
from .errors import CheckpointError
from .video import ENDINGS, ending_of, read_metadata

if TYPE_CHECKING:
    from .checkpoint import Description

SHOWN_NAMES = 20


def inspect(argv: Sequence[str]) -> int:
    """Run the command: a report on stdout.

    Raises: InputError, CheckpointError for what cannot be read.
    """
    parser = Parser("contextanyone inspect", "Say what a weight file is, or how a video was made; nothing is loaded.")
    parser.add_argument(
        "file", type=Path, help="a weight file, a folder of them, or a video, folder of frames or contact sheet"
    )
    path: Path = parser.parse(argv).file
    weights = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if weights:
        absent = [f"{part}.safetensors" for part in PARTS if not (path / f"{part}.safetensors").is_file()]
        reports = ["\n".join(_describe(file)) for file in weights]
        reports.append(f"missing files: {', '.join(absent) or 'none'}")
    elif path.is_dir() or ending_of(path) in (*ENDINGS, ".png"):
        reports = [json.dumps(read_metadata(path), indent=2, ensure_ascii=False)]
    else:
        reports = ["\n".join(_describe(path))]
    sys.stdout.write(_printable("\n\n".join(reports)) + "\n")
    return 0


def _describe(path: Path) -> list[str]:
    from .checkpoint import describe

    found = describe(path)
    kind = found.kind or "unknown"
    lines = [
        f"file:        {path}",
        f"kind:        {kind}" + ("" if found.stated or found.kind is None else " (by its tensor names)"),
        f"size:        {found.size_bytes:,} bytes",
        f"parameters:  {sum(count for name, count in found.dtypes.items() if 'F' in name):,}",
        f"dtype:       {', '.join(f'{name} ({count:,})' for name, count in sorted(found.dtypes.items())) or 'none'}",
        f"config:      {'none in the header' if not found.config else ''}".rstrip(),
    ]
    lines += [f"  {name} = {json.dumps(value)}" for name, value in sorted(found.config.items())]
    lines += _parts(path, found)
    extra = {key: value for key, value in sorted(found.metadata.items()) if key not in ("format", "kind", "config")}
    return lines + [f"{key}: {value}" for key, value in extra.items()]


def _parts(path: Path, found: Description) -> list[str]:
    missing, unknown, wrong = found.missing, found.unknown, found.wrong_shape
    if missing is None and found.stated and found.config:
        compared = _compare_host(path, str(found.kind), found.config)
        missing, unknown, wrong = compared or (None, None, None)
    if missing is None or unknown is None or wrong is None:
        return ["parts:       not known, without a config of this project in the header"]
    if not (missing or unknown or wrong):
        return ["parts:       complete"]
    return [
        line
        for what, names in (("missing", missing), ("unknown", unknown), ("wrong shape", wrong))
        for line in _listed(what, names)
    ]


def _compare_host(path: Path, kind: str, config: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]] | None:
    from .checkpoint import compare_names, read_header
    from .hosts.expected import host_tensors
    from .hosts.text import SPIECE

    try:
        expected = host_tensors(kind, config)
    except Exception as error:  # diffusers and transformers refuse a bad config in any way they like
        raise CheckpointError(f"{path}: no {kind} can be built from the config in its header ({error}).") from error
    if expected is None:
        return None
    tensors = read_header(path).tensors
    if SPIECE in expected and SPIECE in tensors:
        expected[SPIECE] = tensors[SPIECE].shape
    return compare_names(expected, tensors)


def _listed(what: str, names: Sequence[str]) -> Iterable[str]:
    yield f"{what + ':':<12} {len(names) or 'none'}"
    yield from (f"  {name}" for name in names[:SHOWN_NAMES])
    if len(names) > SHOWN_NAMES:
        yield f"  and {len(names) - SHOWN_NAMES} more"


def _printable(text: str) -> str:
    """Text of a stranger's file, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
