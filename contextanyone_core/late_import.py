"""Late imports of optional libraries, with an error that names the pip command."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingDependencyError


def missing(what: str, package: str, command: str = "") -> MissingDependencyError:
    """The error of an optional library: `what` needs `package`, and `command` installs it (`pip install` by default).

    It names packages of the registry and not our extras, so that the command is right in a clone and in ComfyUI's
    environment alike.
    """
    command = command or f"pip install {package}"
    return MissingDependencyError(f"{what} needs the package {package}, which is not installed. Run: {command}")


def host_class(module: str, name: str) -> Any:
    """Import class `name` from `module`.

    Importing the exact submodule at first use keeps the command line from loading all of diffusers and transformers.

    Raises:
        MissingDependencyError: the package is not installed; the message names the pip command.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        package = module.split(".", 1)[0]
        command = f"pip install --upgrade {package}"  # an older version may lack the module
        whole = 'or, in a clone, for the whole command line: pip install -e ".[cli]"'
        raise missing(name, error.name or package, f"{command}, {whole}") from error
