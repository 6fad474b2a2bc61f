"""Personal files by the names that the nodes list: those of models/loras, and the pack's examples."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...contextanyone_core.errors import InputError

FOLDER = "loras"
_EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "personal"


def personal_names() -> list[str]:
    """The files of `models/loras`, as ComfyUI lists them, and behind them the pack's examples."""
    listed = list(folder_paths.get_filename_list(FOLDER))
    return listed + [path.name for path in sorted(_EXAMPLES.glob("*.safetensors")) if path.name not in listed]


def personal_path(name: str) -> Path:
    """Where a file of `models/loras`, or an example of that name, is.

    Raises:
        InputError: it is no longer there.
    """
    path, example = folder_paths.get_full_path(FOLDER, name), _EXAMPLES / Path(name).name
    if path is None and not example.is_file():
        raise InputError(f"{name} is no longer in models/{FOLDER}; put it back, or choose another file.")
    return example if path is None else Path(path)
