"""The exceptions of this package. Each message states what was given, what is needed and how to fix it."""

import difflib
from collections.abc import Iterable


class ContextAnyoneError(Exception):
    """Base of every error that this package raises on purpose; the command line shows its text without a traceback."""

    def __init_subclass__(cls) -> None:
        # ComfyUI loads the package under the path of its folder, and shows the type of an error with its module.
        cls.__module__ = ".".join(__name__.split(".")[-2:])


class ShapeError(ContextAnyoneError):
    """A tensor has the wrong shape for the function it was passed to."""


class CheckpointError(ContextAnyoneError):
    """A weight file is missing, damaged, of another kind, or has other tensor names."""


class MissingDependencyError(ContextAnyoneError):
    """A required optional library is not installed; the message names the pip command."""


class InputError(ContextAnyoneError):
    """An input from the user cannot be used: a picture, a prompt, a number, a name."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name, ` Did you mean --steps?`; "" if no known name is similar."""
    near = nearest(word, known)
    return "" if near is None else f" Did you mean {near}?"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most similar to `word`, ignoring case; None below a similarity of `cutoff` (0 to 1)."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None
