"""The exceptions of this package. Each message says what was given, what is needed and what to do."""


class ContextAnyoneError(Exception):
    """Base of every error that this package raises on purpose; the command line shows its text without a traceback."""

    def __init_subclass__(cls) -> None:
        # ComfyUI loads the package under the path of its folder, and shows the type of an error with its module.
        cls.__module__ = "contextanyone_core.errors"


class ShapeError(ContextAnyoneError):
    """A tensor has the wrong shape for the place it was handed to."""


class CheckpointError(ContextAnyoneError):
    """A weight file is not what it should be: missing, damaged, of another kind, or with other names."""


class MissingDependencyError(ContextAnyoneError):
    """An optional library is needed and not installed; the message names the pip command."""


class InputError(ContextAnyoneError):
    """What the user gave cannot be used: a picture, a prompt, a number, a name."""
