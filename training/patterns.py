"""Patterns over names of parameters and layers, such as `blocks.*.ffn.*`; `*` matches any characters, dots too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from contextanyone_core.errors import InputError, nearest


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_matches(setting: str, patterns: Iterable[str], names: Sequence[str], nothing: str) -> None:
    """Refuse patterns that match none of the names.

    Args:
        setting: whose patterns they are. nothing: what the message calls no match, such as "no parameter".

    Raises:
        InputError: naming the pattern and the name that is most like it.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern, names, cutoff=0.0)
            raise InputError(f"{setting} has the pattern {pattern}, which matches {nothing}; one is {near}.")
