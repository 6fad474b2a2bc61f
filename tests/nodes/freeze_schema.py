"""Writes tests/nodes/schema.json, the frozen interface of the nodes, from a real ComfyUI:

python tests/nodes/freeze_schema.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import comfyui

SCHEMA = Path(__file__).parent / "schema.json"


def main() -> int:
    """0 when the file is written, 2 with the reason where no ComfyUI is found, else what its process gave."""
    comfy = comfyui.find()
    if isinstance(comfy, str):
        sys.stderr.write(f"{comfy}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="comfyui-") as folder:
        options = ("--out", str(SCHEMA), "--schema")
        done = comfyui.run_inside(comfy, Path(folder), *options, timeout=comfyui.BOOT_SECONDS)
    sys.stderr.write(done.stdout[-2000:] if done.returncode else f"{SCHEMA} is written\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
