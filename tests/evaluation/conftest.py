"""Lets the tests of this folder import their own helper modules (tiny_backbones); the clips of a user study."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.media.video_io import write_clip

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    """A set of three references and the clips of two systems, `good` in the reference's colour and `bad` in grey."""
    lines = []
    for index, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        name = f"{index}"
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{name}.png")
        for system, shade in (("good", color), ("bad", (120, 120, 120))):
            folder = tmp_path / system
            folder.mkdir(exist_ok=True)
            frames = np.full((9 if system == "good" else 5, 32, 48, 3), shade, np.uint8)
            write_clip(folder / f"{name}.mp4", frames, {})
        row = {
            "id": name,
            "reference": f"{name}.png",
            "later": "The same person.",
            "seed": index,
            "file": f"{name}.mp4",
        }
        lines.append(json.dumps(row))
    (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n")
    return ["--set", str(tmp_path / "set.jsonl"), "--videos", f"good={tmp_path / 'good'}", f"bad={tmp_path / 'bad'}"]
