"""`contextanyone pose`: what it writes for each form, and one line for what cannot be met."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pose_cases import LENGTHS, figure, sequence
from safetensors.numpy import save_file

from contextanyone_core import cli
from contextanyone_core.cli import pose_inputs
from contextanyone_core.cli.pose import command_parser
from contextanyone_core.media.read_video import VideoFrames, open_video
from contextanyone_core.media.video_io import read_metadata, write_clip
from contextanyone_core.pose.body import body_of, bone_lengths
from contextanyone_core.pose.drawing import MINIATURE, PoseStyle, draw_poses
from contextanyone_core.pose.fitting import fit_affine
from contextanyone_core.pose.litert import DOWNLOAD
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.pose.reading import PoseSource, read_poses
from contextanyone_core.pose.sequence import BODY_18
from contextanyone_core.weights.personal_file import PersonalFile


def dance(frames=9, fps=16.0, **changes):
    return sequence([figure(neck=(300 + 6 * index, 140), **changes) for index in range(frames)], fps=fps)


def tall():
    lengths = LENGTHS.copy()
    lengths[[7, 8, 10, 11]] *= 1.4
    return dance(3, lengths=lengths)


def thigh_by_shoulder(poses):
    return bone_lengths(poses)[7] / bone_lengths(poses)[0]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with a dance and a body, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    Path("dance.json").write_text(json.dumps(to_json(dance())))
    Path("tall.json").write_text(json.dumps(to_json(tall())))
    return tmp_path


@pytest.fixture
def run(desk, capsys):
    def pose(*words) -> list[str]:
        code = cli.main(["pose", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out.splitlines()

    return pose


@pytest.fixture
def refused(desk, capsys):
    """Run a command that must be refused; gives its one line."""

    def pose(*words) -> str:
        before = sorted(desk.rglob("*"))
        code = cli.main(["pose", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("contextanyone: ")
        assert err.count("\n") == 1, err
        assert sorted(desk.rglob("*")) == before
        return err

    return pose


@pytest.mark.parametrize("name", ["out.json", "out.safetensors"])
def test_keypoints_are_written_in_both_forms_with_a_sheet(run, name):
    assert run("dance.json", "--out", name) == [name, "out.contact.png"]
    np.testing.assert_allclose(read_poses(Path(name), PoseSource()).body, dance().body, atol=1e-3)
    assert Image.open("out.contact.png").size[0] > 800


@pytest.mark.parametrize("name", ["out.mp4", "out.webp", "frames"])
def test_poses_are_drawn_at_the_videos_size_in_the_style_asked_for(run, name):
    run("dance.json", "--out", name, "--size", "208x128", "--style", "miniature")
    frames = np.stack(list(open_video(Path(name)).frames))
    expected = draw_poses(dance().placed((128, 208)), MINIATURE)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < (0.001 if name == "frames" else 2)
    assert read_metadata(Path(name))["style"] == "miniature"


def test_another_rate_becomes_16_and_frames_are_cut(run):
    Path("fast.json").write_text(json.dumps(to_json(dance(31, fps=30.0))))
    run("fast.json", "--out", "out.json")
    assert read_poses(Path("out.json"), PoseSource()).num_frames == 17
    run("fast.json", "--frames", 5, "--out", "out.json")
    poses = read_poses(Path("out.json"), PoseSource())
    np.testing.assert_allclose(poses.body[:, 1, 0], 300 + 6 * 30 / 16 * np.arange(5), atol=1e-3)


def test_a_body_gives_its_proportions(run):
    run("dance.json", "--body", "tall.json", "--out", "out.json")
    fitted = read_poses(Path("out.json"), PoseSource())
    assert thigh_by_shoulder(fitted) == pytest.approx(thigh_by_shoulder(tall()), rel=1e-3)
    run("dance.json", "--body", "tall.json", "--fit", "affine", "--out", "out.json")
    fitted = read_poses(Path("out.json"), PoseSource())
    np.testing.assert_allclose(fitted.body, fit_affine(dance(), body_of(tall())).body, atol=1e-2)
    me = PersonalFile("zuv", "woman", "A zuv woman", "", body_of(tall()))
    save_file({"lora": np.zeros(1, np.float32)}, "me.safetensors", me.metadata())
    run("dance.json", "--body", "me.safetensors", "--out", "out.safetensors")
    again = read_poses(Path("out.safetensors"), PoseSource())
    assert thigh_by_shoulder(again) == pytest.approx(thigh_by_shoulder(tall()), rel=1e-3)


def test_drawn_poses_move_to_another_background(run):
    poses = dance().placed((128, 208))
    write_clip(Path("black.mp4"), draw_poses(poses, PoseStyle(half_width=1.5)), {})
    run("black.mp4", "--drawn", "--style", "miniature", "--out", "frames")
    frames = np.stack(list(open_video(Path("frames")).frames))
    assert np.abs(frames.astype(int) - draw_poses(poses, MINIATURE)).mean() < 1
    assert (frames[:, 0, 0] == 127).all()


def test_a_drawn_video_without_a_skeleton_is_taken_with_a_warning(desk, capsys):
    write_clip(Path("plain.mp4"), np.full((5, 64, 64, 3), 50, np.uint8), {})
    assert cli.main(["pose", "plain.mp4", "--drawn", "--out", "frames"]) == 0
    err = capsys.readouterr().err
    assert "plain.mp4 shows no skeleton" in err
    assert err.count("\n") == 1
    assert next(open_video(Path("frames")).frames).max() == 0


def test_a_folder_of_drawn_frames_has_the_rate_that_is_asked_for(run):
    write_clip(Path("at8"), draw_poses(dance().placed((128, 208)), MINIATURE)[:5], {})
    run("at8", "--drawn", "--style", "miniature", "--fps", 8, "--out", "at16")
    slow, fast = (np.stack(list(open_video(Path(name)).frames)) for name in ("at8", "at16"))
    assert np.array_equal(fast[::2], slow)
    assert len(fast) == 9


def test_what_is_odd_about_keypoints_is_a_warning(desk, capsys):
    content = to_json(dance(20))
    content[4]["people"].append({"pose_keypoints_2d": [5.0, 5.0, 0.4] + [0.0] * 51})
    Path("ghost.json").write_text(json.dumps(content))
    assert cli.main(["pose", "ghost.json", "--out", "out.json"]) == 0
    err = capsys.readouterr().err
    assert "ghost.json has stray detections, which are ignored (1 at x 5, y 5 in frame 4)" in err
    assert err.count("\n") == 1


class Upright:
    """An estimator that finds a figure in each frame, and counts them."""

    def __init__(self):
        self.frames = 0

    def estimate(self, frames):
        for _ in frames:
            self.frames += 1
            yield figure()


@pytest.fixture
def upright(monkeypatch):
    estimator = Upright()
    monkeypatch.setattr(pose_inputs, "_estimator", lambda *_: estimator)
    return estimator


def test_only_the_frames_that_are_needed_are_estimated(run, refused, upright):
    """A video of 130 seconds: at most 125 are used."""
    write_clip(Path("long.mp4"), np.zeros((2081, 16, 16, 3), np.uint8), {})
    assert "has about 2081 frames at 16 a second; poses of at most 2001" in refused("long.mp4", "--out", "out.json")
    assert upright.frames == 0
    run("long.mp4", "--frames", 5, "--out", "out.json")
    assert read_poses(Path("out.json"), PoseSource()).num_frames == 5
    assert upright.frames == 13
    write_clip(Path("pictures"), np.zeros((7, 16, 16, 3), np.uint8), {})
    run("pictures", "--fps", 8, "--out", "out.json")
    assert read_poses(Path("out.json"), PoseSource()).num_frames == 13


def test_of_poses_that_are_too_long_some_frames_can_be_had(desk, refused, capsys):
    Path("long.json").write_text(json.dumps(to_json(dance(2600, fps=20.0))))
    assert "at most 2001 can be used. Cut it, state its rate, or ask for" in refused("long.json", "--out", "out.json")
    assert cli.main(["pose", "long.json", "--frames", "5", "--out", "out.json"]) == 0
    assert "has 2600 frames at 20 a second; a video has at most 2001" in capsys.readouterr().err
    assert read_poses(Path("out.json"), PoseSource()).num_frames == 5


def test_of_a_drawn_video_only_the_frames_that_are_needed_are_read(run, refused, monkeypatch):
    read = []

    def counted(path):
        video = open_video(path)
        return VideoFrames(video.fps, (read.append(path) or frame for frame in video.frames), video.seconds)

    monkeypatch.setattr(pose_inputs, "open_video", counted)
    frames = draw_poses(dance(40).placed((128, 208)), MINIATURE)
    write_clip(Path("drawn"), frames, {})
    run("drawn", "--drawn", "--style", "miniature", "--frames", 5, "--out", "some")
    assert np.array_equal(np.stack(list(open_video(Path("some")).frames)), frames[:5])
    assert len(read) == 6
    run("drawn", "--drawn", "--style", "miniature", "--fps", 30, "--frames", 17, "--out", "fast")
    assert np.array_equal(next(open_video(Path("fast")).frames), frames[0])
    assert len(read) == 6 + 33
    write_clip(Path("photo"), np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8), {})
    write_clip(Path("odd"), np.zeros((5, 72, 64, 3), np.uint8), {})
    for name, words in (("photo", "contextanyone pose VIDEO --models PATH --out poses.json"), ("odd", "never resized")):
        read.clear()
        said = refused(name, "--drawn", "--out", "out.mp4")
        assert f"{name}" in said
        assert words in said
        assert len(read) == 1


def test_an_output_that_exists_is_replaced_whole(run):
    Path("out.json").write_text("old")
    run("dance.json", "--out", "out.json")
    assert json.loads(Path("out.json").read_text())[0]["canvas_width"] == 832
    assert not list(Path().glob(".contextanyone*"))


def test_mistakes_are_one_line(refused, desk):
    assert "required" in refused("dance.json")
    assert "no such file" in refused("nothing.json", "--out", "out.json")
    assert "no such file" in refused("dance.json", "--body", "nothing.json", "--out", "out.json")
    assert "overwrite" in refused("dance.json", "--out", "dance.json")
    assert "overwrite" in refused("dance.json", "--body", "tall.json", "--out", "tall.json")
    Path("fr").mkdir()
    Path("fr/0.json").write_text(json.dumps(json.loads(Path("dance.json").read_text())[0]))
    for name in ("fr/all.json", "fr/all.mp4"):
        assert "among the files of fr" in refused("fr", "--out", name)
        assert "among the files of fr" in refused("dance.json", "--body", "fr", "--out", name)
    assert "known are .json, .safetensors, .mp4" in refused("dance.json", "--out", "out.avi")
    assert "does not exist" in refused("dance.json", "--out", "no/out.json")
    assert "does not exist" in refused("dance.json", "--out", "no/out.mp4")
    assert "Did you mean bones?" in refused("dance.json", "--fit", "bone", "--out", "out.json")
    assert "--fit affine needs --body FILE: keypoints" in refused("dance.json", "--fit", "affine", "--out", "out.json")
    assert "ignores it" in refused("dance.json", "--body", "tall.json", "--fit", "none", "--out", "out.json")
    assert "at most 9 frames" in refused("dance.json", "--frames", 13, "--out", "out.json")
    assert "4k + 1" in refused("dance.json", "--frames", 12, "--out", "out.json")
    assert "such as 1920x1080" in refused("dance.json", "--canvas", "0x5", "--out", "out.json")
    assert "leave --canvas out" in refused("dance.json", "--canvas", "64x48", "--out", "out.json")
    assert "leave --fps out" in refused("dance.json", "--fps", 30, "--out", "out.json")
    assert "as a folder's name does" in refused("dance.json", "--out", "out.json/")
    assert "person 2 is asked for" in refused("dance.json", "--person", 2, "--out", "out.json")
    (desk / "folder.json").mkdir()
    assert "is a folder" in refused("dance.json", "--out", "folder.json")
    (desk / "out.contact.png").mkdir()
    assert "out.contact.png is a folder" in refused("dance.json", "--out", "out.json")


def test_what_a_file_shows_may_be_refused(refused):
    content = json.loads(Path("dance.json").read_text())
    for frame in content:
        frame["people"] *= 2
    content[0]["people"][1] = {"pose_keypoints_2d": figure(neck=(600, 150)).reshape(-1).tolist()}
    Path("two.json").write_text(json.dumps(content))
    assert "choose one, such as --person 1" in refused("two.json", "--out", "out.json")
    assert "a body is one person's" in refused("dance.json", "--body", "two.json", "--out", "out.json")
    for frame in content:
        frame["people"] = []
    Path("nobody.json").write_text(json.dumps(content))
    assert "shows nobody" in refused("nobody.json", "--out", "out.json")
    Path("empty.json").write_text("")
    assert "is empty" in refused("empty.json", "--out", "out.json")
    Path("nan.json").write_text(Path("dance.json").read_text().replace("300.0", "NaN"))
    assert "not finite" in refused("nan.json", "--out", "out.json")
    odd = sequence(dance().body, (481, 833))
    Path("odd.json").write_text(json.dumps(to_json(odd)))
    assert "--size 832x480" in refused("odd.json", "--out", "out.mp4")


def test_videos_need_models_and_drawn_ones_a_skeleton(refused, desk):
    write_clip(Path("plain.mp4"), np.full((5, 64, 64, 3), 50, np.uint8), {})
    write_clip(Path("photo.mp4"), np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8), {})
    write_clip(Path("drawn.mp4"), draw_poses(dance().placed((128, 208)), MINIATURE), {})
    assert DOWNLOAD in refused("plain.mp4", "--out", "out.json")
    assert "holds no pose_detection.tflite" in refused("plain.mp4", "--models", desk, "--out", "out.json")
    assert "its own size and rate" in refused("plain.mp4", "--fps", 8, "--out", "out.json")
    assert "its own size and rate" in refused("plain.mp4", "--canvas", "64x64", "--out", "out.json")
    assert "chooses in a file" in refused("plain.mp4", "--person", 2, "--out", "out.json")
    assert "no plain background" in refused("photo.mp4", "--drawn", "--out", "out.mp4")
    said = refused("drawn.mp4", "--drawn", "--size", "416x256", "--out", "out.mp4")
    assert "drawn.mp4 is 208 x 128 pixels, the video 416 x 256; drawn poses are never resized" in said
    assert "no plain background" in refused("photo.mp4", "--drawn", "--size", "416x256", "--out", "out.mp4")
    assert "ask for at most 9" in refused("drawn.mp4", "--drawn", "--frames", 13, "--out", "out.mp4")
    assert "keeps pictures" in refused("drawn.mp4", "--drawn", "--out", "out.json")
    assert "dance.json has keypoints, and --drawn is" in refused("dance.json", "--drawn", "--out", "out.mp4")
    assert "a --body is fitted" in refused("drawn.mp4", "--drawn", "--body", "tall.json", "--out", "out.mp4")
    for option, value in (("--person", 2), ("--canvas", "10x10"), ("--models", "."), ("--fit", "bones")):
        assert f"{option} is for keypoints" in refused("drawn.mp4", "--drawn", option, value, "--out", "out.mp4")
    assert "--smooth is for keypoints" in refused("drawn.mp4", "--drawn", "--smooth", "--out", "out.mp4")
    assert "has its own rate" in refused("drawn.mp4", "--drawn", "--fps", 8, "--out", "out.mp4")


def test_without_the_extra_the_package_to_install_is_named(refused, desk, monkeypatch):
    write_clip(Path("plain.mp4"), np.full((5, 64, 64, 3), 50, np.uint8), {})
    for name in ("pose_detection", "pose_landmark_full"):
        Path(f"{name}.tflite").write_bytes(b"a network")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    said = refused("plain.mp4", "--models", desk, "--out", "out.json")
    assert "needs the package ai-edge-litert, which is not installed. Run: pip install ai-edge-litert" in said


def test_the_documents_commands_are_accepted():
    text = (Path(__file__).parents[2] / "docs" / "POSES.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    commands = [shlex.split(line) for line in blocks.splitlines() if line.startswith("contextanyone pose")]
    assert len(commands) >= 5
    for words in commands:
        command_parser().parse(words[2:])


def test_it_starts_without_torch(desk):
    code = "import sys; from contextanyone_core.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "pose", "dance.json", "--out", "out.mp4"]
    subprocess.run(words, check=True, cwd=desk, capture_output=True, timeout=60)


@pytest.mark.weights
def test_a_video_becomes_poses_with_a_sheet_of_skeletons_over_its_frames(run, capsys):
    models, photographs = (os.environ.get(f"CONTEXTANYONE_{name}") for name in ("MEDIAPIPE", "PHOTOGRAPHS"))
    if not (models and photographs):
        pytest.skip("CONTEXTANYONE_MEDIAPIPE and CONTEXTANYONE_PHOTOGRAPHS are not set: see test_pose_estimation.py")
    walker = np.array(Image.open(Path(photographs) / "bus.jpg").convert("RGB"))[260:1060, :480]
    write_clip(Path("walk.mp4"), np.stack([np.roll(walker, 4 * step, axis=1) for step in range(5)]), {})
    assert run("walk.mp4", "--models", models, "--out", "poses.json") == ["poses.json", "poses.contact.png"]
    poses = read_poses(Path("poses.json"), PoseSource())
    hips = poses.body[:, [BODY_18.index("right_hip"), BODY_18.index("left_hip")], 0].mean(axis=1)
    assert np.polyfit(range(5), hips, 1)[0] == pytest.approx(4, abs=1)
    run("dance.json", "--body", "walk.mp4", "--models", models, "--out", "fitted.json")
    run("dance.json", "--body", "poses.json", "--out", "again.json")
    one, two = (read_poses(Path(name), PoseSource()) for name in ("fitted.json", "again.json"))
    np.testing.assert_allclose(one.body, two.body, atol=0.1)
