"""JSON files that a user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contextanyone_core.errors import InputError


def read_object(option: str, path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        InputError: it cannot be read or is no object; the message names the option.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{option} {path} cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{option} {path} is not a JSON object.")
    return found
