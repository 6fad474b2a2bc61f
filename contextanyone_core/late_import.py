"""Late imports of optional libraries, with an error that names the pip command."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingDependencyError


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
        raise MissingDependencyError(
            f"{name} needs the package {error.name or package}, which is not installed. "
            'Run: pip install "contextanyone[cli]"'
        ) from error
