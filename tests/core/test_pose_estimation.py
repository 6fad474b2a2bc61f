"""The estimator and the segmenter on photographs, where MediaPipe's networks are at hand.

CONTEXTANYONE_MEDIAPIPE names the wheel mediapipe 0.10.21 (pip download --no-deps) or a folder with its .tflite files;
CONTEXTANYONE_PHOTOGRAPHS a folder with `astronaut.png` (of the scikit-image wheel) and `bus.jpg` (of ultralytics').
The numbers are what MediaPipe's own graph (`static_image_mode`, complexity 1) gives for these files.
"""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.pose.blazepose import BlazePose
from contextanyone_core.pose.body import body_of
from contextanyone_core.pose.estimation import PersonSegmenter, PoseEstimator, estimated
from contextanyone_core.pose.litert import DOWNLOAD, crop, model_bytes
from contextanyone_core.pose.selfie import SelfieSegmenter
from contextanyone_core.pose.sequence import BODY_18, SEEN

ASTRONAUT = {
    "nose": (222.7, 128.0), "right_shoulder": (112.7, 240.0), "left_shoulder": (306.2, 256.6),
    "right_eye": (205.0, 103.3), "left_eye": (249.0, 112.5), "right_ear": (190.4, 107.4), "left_ear": (268.0, 122.8),
}  # fmt: skip
WALKER = {
    "nose": (143.3, 445.8), "neck": (122.5, 493.4), "right_shoulder": (84.1, 494.7), "right_elbow": (114.8, 571.0),
    "right_wrist": (180.1, 553.8), "left_shoulder": (160.9, 492.1), "left_elbow": (187.4, 556.9),
    "left_wrist": (142.8, 558.8), "right_hip": (109.7, 649.2), "right_knee": (98.4, 759.3),
    "right_ankle": (68.9, 859.6), "left_hip": (152.4, 642.6), "left_knee": (163.9, 748.2), "left_ankle": (185.0, 854.2),
}  # fmt: skip


def named(variable: str) -> Path:
    place = os.environ.get(variable)
    if not place:
        pytest.skip(f"{variable} is not set: see the head of this file")
    return Path(place)


@pytest.fixture(scope="module")
def models() -> Path:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install ai-edge-litert")
    return named("CONTEXTANYONE_MEDIAPIPE")


@pytest.fixture(scope="module")
def photographs() -> Path:
    return named("CONTEXTANYONE_PHOTOGRAPHS")


def photograph(folder: Path, name: str) -> np.ndarray:
    return np.array(Image.open(folder / name).convert("RGB"))


@pytest.mark.weights
@pytest.mark.parametrize(("name", "expected", "apart"), [("astronaut.png", ASTRONAUT, 2), ("bus.jpg", WALKER, 4)])
def test_the_body_is_where_mediapipe_finds_it(models, photographs, name, expected, apart):
    estimator: PoseEstimator = BlazePose(models)
    (body,) = estimator.estimate([photograph(photographs, name)])
    for joint, place in expected.items():
        found = body[BODY_18.index(joint)]
        assert found[2] > SEEN, joint
        assert np.linalg.norm(found[:2] - place) < apart, joint
    hidden = [joint for joint in ("right_knee", "left_knee", "right_ankle", "left_ankle") if joint not in expected]
    assert all(body[BODY_18.index(joint), 2] < SEEN for joint in hidden)  # below the picture's edge


@pytest.mark.weights
def test_a_whole_body_gives_the_lengths_of_its_bones(models, photographs):
    frame = photograph(photographs, "bus.jpg")
    poses = estimated([frame, frame], 25.0, BlazePose(models))
    assert (poses.width, poses.height, poses.fps, poses.num_frames) == (810, 1080, 25, 2)
    lengths = body_of(poses).lengths
    assert not np.isnan(lengths).any()
    assert lengths[[7, 10]].max() == pytest.approx(111, abs=6)  # thigh, pixels
    assert lengths[[8, 11]].max() == pytest.approx(106, abs=6)  # shin


@pytest.mark.weights
def test_the_person_is_followed_and_found_again(models, photographs):
    """A shift is followed; an empty picture shows nobody; then the whole frame is searched anew."""
    frame = photograph(photographs, "bus.jpg")
    moved = np.roll(frame, 12, axis=1)
    empty = np.full_like(frame, 128)
    bodies = list(BlazePose(models).estimate([frame, moved, empty, frame]))
    assert (bodies[2] == 0).all()
    for body, shift in ((bodies[1], 12), (bodies[3], 0)):
        apart = body[:14, :2] - bodies[0][:14, :2] - (shift, 0)
        assert np.median(np.linalg.norm(apart, axis=1)) < 6


@pytest.mark.weights
def test_people_are_cut_out(models, photographs):
    segmenter: PersonSegmenter = SelfieSegmenter(models)
    frame = photograph(photographs, "astronaut.png")
    (mask,) = segmenter.segment([frame])
    assert mask.shape == frame.shape[:2]
    assert mask.dtype == np.float32
    assert mask.mean() == pytest.approx(0.5418, abs=0.002)  # MediaPipe's own mask
    assert mask[128, 222] > 0.95  # the face
    assert mask[40, 480] < 0.05  # the wall
    (walkers,) = segmenter.segment([photograph(photographs, "bus.jpg")])
    assert walkers.mean() == pytest.approx(0.1037, abs=0.002)


@pytest.mark.weights
def test_a_folder_serves_as_the_wheel_does(models, tmp_path):
    names = ("pose_detection.tflite", "pose_landmark_full.tflite", "selfie_segmentation.tflite")
    for name in names:
        (tmp_path / name).write_bytes(model_bytes(models, name))
    BlazePose(tmp_path)
    SelfieSegmenter(tmp_path)
    (tmp_path / names[0]).write_bytes((tmp_path / names[2]).read_bytes())
    with pytest.raises(InputError, match="another network"):
        BlazePose(tmp_path)
    (tmp_path / names[0]).write_bytes(b"junk" * 100)
    with pytest.raises(InputError, match="damaged"):
        BlazePose(tmp_path)


def test_models_that_are_not_there_are_refused(tmp_path):
    wheel = tmp_path / "mediapipe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mediapipe/__init__.py", "")
    for place, message in (
        (tmp_path, "holds no a.tflite"),
        (wheel, "holds no a.tflite"),
        (tmp_path / "nothing", "does not exist"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            model_bytes(place, "a.tflite")
        assert DOWNLOAD in str(refused.value)
    assert DOWNLOAD in (Path(__file__).parents[2] / "docs" / "POSES.md").read_text(encoding="utf-8").splitlines()
    (tmp_path / "junk.whl").write_bytes(b"junk")
    with pytest.raises(InputError, match="no wheel"):
        model_bytes(tmp_path / "junk.whl", "a.tflite")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tflite").write_bytes(b"x")
    with pytest.raises(InputError, match="several"):
        model_bytes(tmp_path, "a.tflite")


def test_a_crop_turns_reads_between_pixels_and_ends_in_black_or_the_edge():
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, 4:] = 200
    whole = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    np.testing.assert_allclose(crop(frame, whole, 8, black=True) * 255, frame, atol=1e-4)
    quarter = np.array([[8.0, 0.0], [8.0, 8.0], [0.0, 0.0]])  # turned clockwise
    turned = crop(frame, quarter - (1, 0), 8, black=False)
    assert turned[0].mean() == pytest.approx(200 / 255)
    assert turned[-1].mean() == 0
    half = crop(frame, np.array([[3.5, 0.0], [4.5, 0.0], [3.5, 1.0]]), 2, black=True)
    assert half[0, 0, 0] == pytest.approx(100 / 255)
    outside = np.array([[100.0, 100.0], [101.0, 100.0], [100.0, 101.0]])
    assert crop(frame, outside, 4, black=True).max() == 0
    assert crop(frame, outside, 4, black=False).min() == pytest.approx(200 / 255)
