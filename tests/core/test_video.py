"""Clips are written atomically, contain their generation record, and decode to the frames that were written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.media import video_io as video
from contextanyone_core.media.contact_sheet import contact_sheet, frame_choice

METADATA = {
    "first": 'one = 1; # "two" \\ three\nfour \x00 emoji \U0001f600 \u4e2d\u6587',
    "seed": 2**63 - 1,
    "settings": {"guidance_scale": 4.5, "size": [64, 32]},
}
NAMES = ("clip.mp4", "clip.gif", "clip.webp", "clip")


@pytest.fixture
def frames() -> np.ndarray:
    """Nine smooth frames of 64 x 32 whose brightness rises."""
    y, x = np.mgrid[0:32, 0:64]
    return np.stack([np.stack([x * 3, y * 6, np.full_like(x, 20 * t)], -1) for t in range(9)]).astype(np.uint8)


@pytest.fixture
def sheet(frames) -> Image.Image:
    return contact_sheet([frames[0]], frames)


@pytest.fixture
def read_only_folder(tmp_path) -> Path:
    """A folder that cannot be written to; root may write anywhere but in /proc."""
    if os.geteuid() == 0:
        return Path("/proc/self")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    return folder


def decode(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def read_all(path: Path) -> np.ndarray:
    if path.is_dir():
        return np.stack([np.asarray(Image.open(p)) for p in sorted(path.iterdir())])
    if path.suffix == ".mp4":
        return decode(path)
    with Image.open(path) as image:
        shots = []
        for index in range(image.n_frames):
            image.seek(index)
            shots.append(np.asarray(image.convert("RGB")))
        return np.stack(shots)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2).clip(1e-9)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_reads_back(tmp_path, frames, sheet, name):
    path = tmp_path / name
    video.check_output(path)
    contact = video.save_clip(path, frames, sheet, METADATA)
    decoded = read_all(path)
    assert decoded.shape == frames.shape
    assert psnr(decoded, frames) > {"clip.mp4": 35, "clip.gif": 25, "clip.webp": 30, "clip": 80}[name]
    assert video.read_metadata(path) == METADATA
    assert contact == tmp_path / "clip.contact.png"
    assert video.read_metadata(contact) == METADATA
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "clip.contact.png"])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp"])
def test_the_same_frames_give_the_same_file(tmp_path, frames, sheet, name):
    (tmp_path / "again").mkdir()
    for folder in (tmp_path, tmp_path / "again"):
        video.save_clip(folder / name, frames, sheet, METADATA)
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_mp4_is_what_browsers_play(tmp_path, frames, sheet):
    path = tmp_path / "clip.MP4"
    video.save_clip(path, frames, sheet, METADATA)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "Video: h264" in said
    assert "yuv420p(tv, bt709" in said
    assert f"{video.FPS} fps" in said
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_one_frame_and_odd_names(tmp_path, frames, sheet):
    for name in ("one frame %03d \u4e2d\u6587 \U0001f600.mp4", "-y.mp4", "a:b.mp4", "x" * 230 + ".mp4"):
        path = tmp_path / name
        video.check_output(path)
        video.save_clip(path, frames[:1], sheet, METADATA)
        assert len(decode(path)) == 1


def test_durations_keep_the_rate():
    for step in (1, 10):
        delays = video.durations(160, step=step)
        assert sum(delays) == 10_000
        assert all(delay % step == 0 and abs(delay - 62.5) <= step for delay in delays)


def test_an_existing_clip_is_replaced_only_when_the_new_one_is_whole(tmp_path, frames, sheet):
    path = tmp_path / "clip.mp4"
    path.write_text("old")
    with pytest.raises(OSError, match="encoder"):
        video.save_clip(path, frames[:, :31, :63], sheet, METADATA)  # odd sides, which yuv420p cannot hold
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    video.save_clip(path, frames, sheet, METADATA)
    assert len(decode(path)) == 9


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_when_writing_stops(tmp_path, frames, sheet, monkeypatch, stop, name):
    def stopped(*args):
        raise stop

    monkeypatch.setattr(video, "_save_png", stopped)
    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        video.save_clip(tmp_path / name, frames, sheet, METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["clip.mp4", "clip"])
def test_clip_and_contact_sheet_appear_both_or_neither(tmp_path, frames, sheet, name):
    """What the clip cannot replace came while it was made: no sheet stands there alone or replaces another."""
    (tmp_path / "clip.contact.png").write_text("old sheet")
    (tmp_path / name).mkdir()
    (tmp_path / name / "work").write_text("of somebody")
    with pytest.raises(OSError, match=name):
        video.save_clip(tmp_path / name, frames, sheet, METADATA)
    assert (tmp_path / "clip.contact.png").read_text() == "old sheet"
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted([name, "work", "clip.contact.png"])


def test_a_clip_has_the_mode_of_the_umask(tmp_path, frames, sheet):
    before = os.umask(0o027)
    try:
        video.save_clip(tmp_path / "clip.mp4", frames, sheet, METADATA)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o640}


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from contextanyone_core.media import video_io as video
from contextanyone_core.media.contact_sheet import contact_sheet
frames = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
sheet = contact_sheet([], frames)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    video.save_clip(Path(sys.argv[1]), frames, sheet, {})
except OSError as error:
    sys.exit(0 if video.is_disk_full(error) else f"{error.errno}: {error}")
sys.exit("written")
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_fails_for_room_is_told_as_such(tmp_path, name):
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / name)], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_the_signal_for_large_files_writes_videos(tmp_path, frames, sheet, monkeypatch):
    monkeypatch.delattr(video.signal, "SIGXFSZ")  # Windows
    video.save_clip(tmp_path / "clip.mp4", frames, sheet, METADATA)
    assert len(decode(tmp_path / "clip.mp4")) == 9


def test_frames_take_the_place_of_an_empty_folder(tmp_path, frames, sheet):
    (tmp_path / "clip").mkdir()
    video.check_output(tmp_path / "clip")
    video.save_clip(tmp_path / "clip", frames, sheet, METADATA)
    assert len(read_all(tmp_path / "clip")) == 9


def test_a_missing_encoder_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    video.check_output(tmp_path / "out.webp")
    with pytest.raises(MissingDependencyError, match="imageio-ffmpeg"):
        video.check_output(tmp_path / "out.mp4")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing/out.mp4", "does not exist"),
        ("file/out.mp4", "does not exist"),
        ("file", "is a file"),
        ("out.avi", r"\.mp4, \.gif, \.webp"),
        (".mp4", "plain file name"),
        ("..", "plain file name"),
        ("full", "not empty"),
        ("folder.mp4", "is a folder"),
        ("taken.mp4", "contact sheet"),
        ("y" * 300 + ".mp4", "cannot write"),
        ("nul\0.mp4", "cannot write"),
    ],
)
def test_outputs_that_cannot_be_are_refused(tmp_path, name, words):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "taken.contact.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words):
        video.check_output(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_folder_is_refused(read_only_folder):
    with pytest.raises(InputError, match="cannot write"):
        video.check_output(read_only_folder / "out.mp4")


def test_metadata_of_others_are_refused(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "plain.png")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.gif").write_text("no picture")
    (tmp_path / "hollow").mkdir()
    for name in ("pipe.mp4", "pipe.webp"):
        os.mkfifo(tmp_path / name)
    for name, words in (
        ("plain.png", "does not say"),
        ("text.mp4", "cannot be read"),
        ("text.gif", "cannot be read"),
        ("hollow", "without frame_"),
        ("missing.mp4", "no such file"),
        ("pipe.mp4", "regular"),
        ("pipe.webp", "regular"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            video.read_metadata(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_contact_sheet_shows_references_and_first_and_last_frame():
    frames = np.zeros((81, 128, 192, 3), np.uint8)
    frames[0], frames[-1] = 60, 180
    wide = np.full((20, 2000, 3), 120, np.uint8)
    sheet = np.asarray(contact_sheet([wide, frames[0]], frames))
    for value in (0, 60, 120, 180):
        assert (sheet == value).all(-1).sum() > 100
    assert np.asarray(contact_sheet([], frames[:1])).shape[1] < sheet.shape[1]


@pytest.mark.parametrize("count", [1, 2, 5, 9, 17, 81])
def test_frames_are_chosen_evenly(count):
    chosen = frame_choice(count)
    assert chosen[0] == 0
    assert chosen[-1] == count - 1
    assert len(chosen) == min(9, count)
    gaps = np.diff(chosen)
    assert count < 2 or gaps.max() - gaps.min() <= 1
