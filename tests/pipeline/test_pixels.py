"""Shots and cheap scores on small rendered videos and on pictures made for the purpose."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from contextanyone_core.media.video_io import write_clip
from data_pipeline.pixels.decode import frames_of
from data_pipeline.pixels.scores import (
    Blur,
    Dark,
    Hashes,
    Letterbox,
    Motion,
    Static,
    Text,
    hash_distance,
    perceptual_hash,
)
from data_pipeline.pixels.shots import LENGTHS, Probe, Shots
from data_pipeline.rows import Drop, Row
from data_pipeline.world_sources import FAULTS, WorldSet, read_truth, write_source
from training.data.buckets import BucketSettings

ROOT = Path(__file__).resolve().parents[2]
CHEAP = (Blur, Dark, Static, Motion, Letterbox, Text)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A source of each fault: its rows after the pixel stages, and the folder of each."""
    root, world = tmp_path_factory.mktemp("world"), WorldSet(count=18, seed=3)
    found = {}
    for fault in set(FAULTS):
        folder = root / fault
        folder.mkdir()
        write_source(folder, world, FAULTS.index(fault))
        row = Probe(root)(Row(source=fault, sha256="0" * 64, video=f"{fault}/video.mp4"))
        rows = Shots(root)(row)
        for stage in (*(kind(root) for kind in CHEAP), Hashes(root)):
            rows = [stage(one) for one in rows]
        found[fault] = rows
    return root, found


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"shaky"}))
def test_shots_are_the_rendered_ones(scored, fault):
    """But of a camera that jumps: PySceneDetect may cut there, and the motion filter drops what it cuts."""
    root, rows = scored
    true = read_truth(root / fault)["spans"]
    got = [(row.start, row.stop) for row in rows[fault]]
    assert len(got) == len(true)
    for (start, stop), (first, last) in zip(got, true, strict=True):
        assert abs(start - first) <= 2
        assert abs(stop - last) <= 2
    assert all(b[0] - a[1] >= (4 if fault == "dissolve" else 0) for a, b in pairwise(got))


@pytest.mark.parametrize(
    ("fault", "score", "sign"),
    [
        ("dark", "dark.brightness", -1),
        ("blurred", "blur.sharpness", -1),
        ("static", "static.change", -1),
        ("shaky", "motion.flow", 1),
        ("letterbox", "letterbox.share", 1),
        ("text", "text.area", 1),
    ],
)
def test_a_fault_has_the_extreme_score(scored, fault, score, sign):
    _, rows = scored
    others = [sign * row.scores[score] for kind in ("none", "cut", "dissolve") for row in rows[kind]]
    assert all(sign * row.scores[score] > max(others) for row in rows[fault])


def test_sources_are_the_same_bytes_each_time(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_source(tmp_path / name, WorldSet(count=1, seed=1), 2)
    assert (tmp_path / "a" / "video.mp4").read_bytes() == (tmp_path / "b" / "video.mp4").read_bytes()


def test_a_file_that_is_no_video_is_dropped(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video at all" * 100)
    found = Probe(tmp_path)(Row(source="x", sha256="0" * 64, video="x.mp4"))
    assert isinstance(found, Drop)
    assert found.reason == "undecodable"
    assert found.why.startswith("x cannot be decoded")
    assert str(tmp_path) not in found.why


def test_videos_are_looked_at_as_training_reads_them(tmp_path):
    """Upright, with square pixels, the default stream: a file has another stream first, and is turned."""
    frames = np.full((6, 48, 64, 3), 60, np.uint8)
    frames[:, :16, :20] = (230, 20, 20)
    write_clip(tmp_path / "a.mp4", frames, {})
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"]
    turned = [*words, "-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4"]
    subprocess.run(list(map(str, turned)), check=True)
    small = ["-f", "lavfi", "-i", "color=blue:s=32x32:r=1:d=1", "-i", tmp_path / "a.mp4", "-map", "0:v", "-map", "1:v"]
    marks = ["-disposition:v:0", "0", "-disposition:v:1", "default", "-vf:v:1", "setsar=2", tmp_path / "two.mkv"]
    subprocess.run(list(map(str, [*words, *small, *marks])), check=True)
    for name, size, red in (("turned.mp4", (48, 64), (50, 8)), ("two.mkv", (128, 48), (8, 20))):
        row = Probe(tmp_path)(Row(source="x", sha256="0" * 64, video=name))
        assert isinstance(row, Row)
        measured = tuple(row.scores[f"probe.{key}"] for key in ("width", "height", "frames", "fps"))
        assert measured == (*size, 6, pytest.approx(16, rel=0.01))  # some containers round times to milliseconds
        picture = next(frames_of(tmp_path / name, 256)).astype(int)
        assert picture.shape == (*size[::-1], 3)
        assert picture[red][0] > 200
        assert picture[red][1] < 60


def test_a_missing_file_is_a_failure_and_no_drop(tmp_path):
    with pytest.raises(FileNotFoundError):
        Probe(tmp_path)(Row(source="x", sha256="0" * 64, video="x.mp4"))


def test_stages_that_need_no_torch_do_not_load_it():
    """Every worker of the chain imports them."""
    code = "import sys, data_pipeline.commands; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_moving_blend_of_motion_is_no_dissolve(tmp_path):
    """A bright square that crosses the picture changes much, but no blend of the ends explains it."""
    frames = np.zeros((30, 64, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 2 * number : 2 * number + 24] = 220
    write_clip(tmp_path / "x.mp4", frames, {})
    row = Probe(tmp_path)(Row(source="x", sha256="0" * 64, video="x.mp4"))
    assert [(shot.start, shot.stop) for shot in Shots(tmp_path)(row)] == [(0, 30)]


@pytest.mark.parametrize(("length", "shots"), [(4, [(0, 28)]), (8, [(0, 12), (20, 32)])])
def test_a_change_in_a_few_frames_is_no_dissolve(tmp_path, length, shots):
    """Somebody lands from a jump, or a light goes on: the same change over eight frames is a dissolve."""
    levels = np.concatenate([np.full(12, 90.0), np.linspace(90, 150, length + 2)[1:-1], np.full(12, 150.0)])
    write_clip(tmp_path / "x.mp4", np.tile(levels.round().astype(np.uint8)[:, None, None, None], (1, 64, 64, 3)), {})
    row = Probe(tmp_path)(Row(source="x", sha256="0" * 64, video="x.mp4"))
    found = [(shot.start, shot.stop) for shot in Shots(tmp_path)(row)]
    assert len(found) == len(shots)
    assert np.abs(np.array(found) - shots).max() <= 1


def test_text_that_moves_is_not_burnt_in(tmp_path):
    rng = np.random.default_rng(0)
    strokes = np.where(rng.random((6, 40)) < 0.5, 255, 0).astype(np.uint8)
    still, moving = (np.full((20, 64, 64, 3), 60, np.uint8) for _ in range(2))
    for number in range(20):
        still[number, 50:56, 10:50] = strokes[..., None]
        moving[number, 10 + 2 * number : 16 + 2 * number, 10:50] = strokes[..., None]
    areas = []
    for frames in (still, moving):
        pairs = tuple((a, b) for a, b in pairwise(frames))
        areas.append(Text(tmp_path).measure(pairs, 16.0)["area"])
    assert areas[0] > 0.03
    assert areas[1] == 0


def test_a_bar_at_one_edge_is_scenery(tmp_path):
    frames = np.full((9, 64, 64, 3), 120, np.uint8)
    frames[:, :10] = 0
    pairs = tuple((a, b) for a, b in pairwise(frames))
    assert Letterbox(tmp_path).measure(pairs, 16.0) == {"share": 0.0}
    frames[:, 54:] = 0
    assert Letterbox(tmp_path).measure(pairs, 16.0) == {"share": pytest.approx(20 / 64)}


def test_hashes_are_near_for_a_copy_and_far_for_another(scored):
    _, rows = scored
    first = rows["none"][0].labels["hashes.frames"].split()
    other = rows["dark"][0].labels["hashes.frames"].split()
    assert all(hash_distance(a, b) > 0.15 for a, b in zip(first, other, strict=True))
    picture = np.random.default_rng(0).integers(0, 200, (64, 64, 3), np.uint8)
    assert hash_distance(perceptual_hash(picture), perceptual_hash(picture + 9)) < 0.02


def test_remarks_of_ffmpeg_do_not_reach_the_terminal(tmp_path):
    """PyAV leaves them out; PySceneDetect's own readers of files would turn them on for the process."""
    write_clip(tmp_path / "good.mp4", np.zeros((12, 32, 32, 3), np.uint8), {})
    (tmp_path / "cut_off.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:900])
    script = """
import sys
from pathlib import Path
from data_pipeline.pixels.shots import Probe, Shots
from data_pipeline.rows import Row
root = Path(sys.argv[1])
Shots(root)(Row(source="good", sha256="0" * 64, video="good.mp4", stop=12))
print(Probe(root)(Row(source="cut_off", sha256="0" * 64, video="cut_off.mp4")).reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["no_frames"]


def test_a_video_whose_size_changes_is_dropped_before_any_model_sees_it(tmp_path):
    """Recordings of calls do so; training takes no clip of it."""
    for number, size in enumerate((64, 96)):
        with av.open(str(tmp_path / f"{number}.ts"), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25, options={"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            for value in range(12):
                picture = np.full((size, size, 3), 10 * value, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
    (tmp_path / "call.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    found = Probe(tmp_path)(Row(source="call.ts", sha256="0" * 64, video="call.ts"))
    assert found.reason == "undecodable"
    assert found.why.startswith("call.ts has frames of different sizes, from frame 1")


def test_the_rate_is_that_of_the_frames_times_not_what_the_file_states(tmp_path):
    """Browsers record WebM of 1,000 frames a second by its header; its clips had forty times their motion."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number, moment in enumerate((0, 40, 80, 140, 160, 200)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30 * number, np.uint8))
            frame.pts = moment
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = Probe(tmp_path)(Row(source="a.mkv", sha256="0" * 64, video="a.mkv"))
    assert (found.scores["probe.frames"], found.scores["probe.fps"]) == (6, pytest.approx(25))


def write_at(path, rate, count):
    """Frames that slowly become brighter, at a rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(count):
            picture = np.full((64, 64, 3), 60 + number // 8, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))


def test_a_long_shot_becomes_rows_as_long_as_the_buckets(tmp_path):
    """Of ten seconds in one row a training would use five at most, and the caption would tell of all ten."""
    write_at(tmp_path / "a.mp4", 30, 300)
    rows = Shots(tmp_path)(Probe(tmp_path)(Row(source="a.mp4", sha256="0" * 64, video="a.mp4")))
    assert [(row.start, row.stop) for row in rows] == [(0, 151), (152, 243)]  # 5 s, then 3 s; the rest fills no bucket
    scores = [{name: row.scores[f"shots.{name}"] for name in ("frames", "start", "stop", "count")} for row in rows]
    assert scores == [{"frames": frames, "start": 0, "stop": 300, "count": 1} for frames in (81, 49)]


def test_lengths_are_counted_at_16_frames_a_second(tmp_path):
    """33 frames of a phone's 30 a second are 18 of training's: no bucket of clips takes them."""
    write_at(tmp_path / "a.mp4", 30, 33)
    row = Probe(tmp_path)(Row(source="a.mp4", sha256="0" * 64, video="a.mp4"))
    assert [(x.start, x.stop, x.scores["shots.frames"]) for x in Shots(tmp_path)(row)] == [(0, 33, 18)]
    assert [row.stop for row in Shots(tmp_path, lengths=(17,))(row)] == [31]


def test_the_lengths_are_training_s_default_buckets():
    assert (1, *LENGTHS) == BucketSettings().frames
