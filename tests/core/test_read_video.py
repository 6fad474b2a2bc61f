"""Reading clips: every format returns the frames that were written, upright, at their rate; others are refused."""

import subprocess
import sys
import tempfile

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.media import read_video
from contextanyone_core.media.read_video import open_video
from contextanyone_core.media.video_io import write_clip


def clip(frames=6, height=48, width=64):
    """A red corner on grey that gets brighter from frame to frame."""
    pictures = np.full((frames, height, width, 3), 60, np.uint8)
    pictures += (np.arange(frames, dtype=np.uint8) * 20)[:, None, None, None]
    pictures[:, : height // 3, : width // 3] = (230, 20, 20)
    return pictures


def ffmpeg(*words):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, words)], check=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a.gif", "frames"])
@pytest.mark.parametrize("frames", [1, 6, 17])
def test_what_we_write_is_read_back(tmp_path, name, frames):
    write_clip(tmp_path / name, clip(frames), {})
    video = open_video(tmp_path / name)
    read = np.stack(list(video.frames))
    assert video.fps == 16
    assert read.shape == (frames, 48, 64, 3)
    assert round(video.seconds * video.fps) == frames  # known before a frame is read
    assert np.abs(read.astype(int) - clip(frames)).mean() < 4


def test_folders_are_read_in_natural_order_without_hidden_files(tmp_path):
    for number in (9, 10, 100):
        Image.fromarray(np.full((20, 30, 3), number, np.uint8)).save(tmp_path / f"f{number}.png")
    (tmp_path / "._f1.png").write_bytes(b"junk")
    (tmp_path / "f1.txt").write_bytes(b"junk")
    assert [int(frame[0, 0, 0]) for frame in open_video(tmp_path).frames] == [9, 10, 100]
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "f11.png")
    with pytest.raises(InputError, match=r"30 x 20 and 30 x 30"):
        list(open_video(tmp_path).frames)


def test_a_picture_is_one_frame(tmp_path):
    Image.fromarray(clip()[0]).save(tmp_path / "a.png")
    assert np.array_equal(next(open_video(tmp_path / "a.png").frames), clip()[0])


def test_the_rate_is_the_files_own(tmp_path):
    write_clip(tmp_path / "a.mp4", clip(12), {})
    ffmpeg("-r", 30, "-i", tmp_path / "a.mp4", "-r", 30, tmp_path / "b.mp4")
    video = open_video(tmp_path / "b.mp4")
    assert video.fps == 30
    assert len(list(video.frames)) == 12
    pictures = [Image.fromarray(frame) for frame in clip(5)]
    pictures[0].save(tmp_path / "c.webp", save_all=True, append_images=pictures[1:], duration=100)
    assert open_video(tmp_path / "c.webp").fps == 10


@pytest.mark.parametrize(
    ("ending", "moves"), [("mp4", 0), ("gif", 0), ("mp4", 9), ("gif", 9), ("webp", 2), ("webp", 9)]
)
def test_a_still_stretch_keeps_its_time(tmp_path, ending, moves):
    """Pillow writes frames that are alike as one that lasts longer: at the start, at the end, and as the whole clip.

    But a WebP of nothing else is written as a picture, without a time.
    """
    frames = np.concatenate((clip(1).repeat(9, 0), clip(moves + 1)[1:], clip(moves + 1)[-1:].repeat(8, 0)))
    write_clip(tmp_path / f"a.{ending}", frames, {})
    video = open_video(tmp_path / f"a.{ending}")
    read = np.stack(list(video.frames))
    assert video.fps == 16
    assert len(read) == len(frames) == 17 + moves
    assert np.abs(read.astype(int) - frames).mean((1, 2, 3)).max() < 4


def test_uneven_frames_are_shown_as_long_as_they_last(tmp_path):
    pictures = [Image.fromarray(frame) for frame in clip(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[500, 100, 1000])
    read = np.stack(list(open_video(tmp_path / "a.gif").frames))[:, -1, -1, 0].astype(int)
    assert (open_video(tmp_path / "a.gif").fps, open_video(tmp_path / "a.gif").seconds) == (16, len(read) / 16)
    assert np.bincount((read - 60 + 5) // 20).tolist() == [8, 2, 15]  # of 1.6 seconds


@pytest.mark.parametrize("ending", ["webp", "gif", "png"])
def test_frames_without_a_duration_last_a_tenth_of_a_second(tmp_path, ending):
    pictures = [Image.fromarray(frame) for frame in clip(5)]
    pictures[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pictures[1:], duration=0)
    video = open_video(tmp_path / f"a.{ending}")
    assert (round(video.fps, 3), len(list(video.frames))) == (10, 5)


def test_thousands_of_frames_a_second_are_read_at_sixty(tmp_path):
    """As ffmpeg takes a file whose times are in milliseconds and even nowhere, such as a browser's recording."""
    words = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=1000:duration=2", "-pix_fmt", "yuv420p")
    ffmpeg(*words, tmp_path / "a.mp4")
    video = open_video(tmp_path / "a.mp4")
    frames = list(video.frames)
    assert len(frames) / video.fps == pytest.approx(2, abs=0.05)
    assert video.fps == 60


def red_corner(path):
    """Where the red is in the first frame: 'top left' and so on, with the frame's size."""
    frame = next(open_video(path).frames).astype(int)
    y, x = np.argwhere((frame[..., 0] > 150) & (frame[..., 1] < 90)).mean(axis=0) / frame.shape[:2]
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}", frame.shape[:2]


@pytest.mark.parametrize("ending", ["png", "avif"])
def test_animated_pictures_are_clips_here_as_in_training(tmp_path, ending):
    pictures = [Image.fromarray(frame) for frame in clip(5)]
    pictures[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pictures[1:], duration=100)
    video = open_video(tmp_path / f"a.{ending}")
    assert video.fps == 10
    assert len(list(video.frames)) == 5


def test_rotated_and_mirrored_videos_are_upright(tmp_path):
    write_clip(tmp_path / "a.mp4", clip(), {})
    assert red_corner(tmp_path / "a.mp4") == ("top left", (48, 64))
    for options, expected in (
        (("-display_rotation", 90), ("bottom left", (64, 48))),
        (("-display_rotation", 180), ("bottom right", (48, 64))),
        (("-display_hflip",), ("top right", (48, 64))),
        (("-display_vflip",), ("bottom left", (48, 64))),
        (("-display_rotation", 270), ("top right", (64, 48))),
        (("-display_rotation", 90, "-display_hflip"), ("bottom right", (64, 48))),
        (("-display_rotation", 270, "-display_hflip"), ("top left", (64, 48))),
    ):
        ffmpeg(*options, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
        assert red_corner(tmp_path / "b.mp4") == expected, options


def test_wide_pixels_become_square_and_the_default_stream_is_taken(tmp_path):
    write_clip(tmp_path / "a.mp4", clip(), {})
    ffmpeg("-i", tmp_path / "a.mp4", "-vf", "setsar=2", tmp_path / "wide.mp4")
    assert next(open_video(tmp_path / "wide.mp4").frames).shape == (48, 128, 3)
    small = ["-f", "lavfi", "-i", "color=blue:s=32x32:r=1:d=1"]
    two = ["-map", "0:v", "-map", "1:v", "-disposition:v:0", "0", "-disposition:v:1", "default"]
    ffmpeg(*small, "-i", tmp_path / "a.mp4", *two, tmp_path / "two.mkv")
    video = open_video(tmp_path / "two.mkv")
    assert next(video.frames).shape == (48, 64, 3)
    assert video.fps == 16


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "gray"])
def test_other_forms_of_pixels_become_rgb_of_eight_bits(tmp_path, pixels):
    write_clip(tmp_path / "a.mp4", clip(), {})
    ffmpeg("-i", tmp_path / "a.mp4", "-pix_fmt", pixels, tmp_path / "b.mp4")
    frames = list(open_video(tmp_path / "b.mp4").frames)
    assert len(frames) == 6
    assert np.abs(frames[5][40].astype(int) - 160).max() < 8  # grey below the corner


def _with_alpha(path, *words):
    """The clip with an opaque red corner and transparent below it, where the hidden colour is green."""
    hidden = np.full((6, 48, 64, 1), 255, np.uint8)
    pictures = clip()
    pictures[:, 16:], hidden[:, 16:] = (20, 200, 20), 0
    raw = np.concatenate([pictures, hidden], axis=-1).tobytes()
    source = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", "16", "-i", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *source, *words, str(path)]
    subprocess.run(command, check=True, input=raw)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"]),
        ("b.webm", ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"]),
        ("a.mov", ["-c:v", "qtrle", "-pix_fmt", "argb"]),
        ("b.mov", ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"]),
        ("a.mkv", ["-c:v", "ffv1", "-pix_fmt", "bgra"]),
    ],
)
def test_transparent_videos_are_over_white_as_pictures_are(tmp_path, name, words):
    _with_alpha(tmp_path / name, *words)
    video = open_video(tmp_path / name)
    frames = np.stack(list(video.frames))
    assert frames.shape == (6, 48, 64, 3)
    assert video.fps == 16
    assert frames[:, 30:].min() > 240
    assert red_corner(tmp_path / name) == ("top left", (48, 64))


_TALKATIVE = r"""#!{python}
import os
os.write(2, b"Input #0\n  Stream #0:0: Video: rawvideo, 16x16\n    x : 0\nStream mapping:\n  Stream #0:0 -> #0:0\n")
os.write(2, b"Output #0, image2pipe\n  Stream #0:0: Video: pam, 16x16, 25 fps\n")
os.write(1, b"P7\nWIDTH 16\nHEIGHT 16\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(768))
for _ in range(40000):
    os.write(2, b"frame=    1 fps=0.0 q=-0.0 size=       1KiB\r")
"""


def test_what_ffmpeg_goes_on_printing_spoils_no_description(tmp_path, monkeypatch):
    talkative, logs = tmp_path / "ffmpeg", tmp_path / "logs"
    talkative.write_text(_TALKATIVE.format(python=sys.executable))
    talkative.chmod(0o755)
    logs.mkdir()
    monkeypatch.setattr(read_video, "ffmpeg_path", lambda: str(talkative))
    monkeypatch.setattr(tempfile, "tempdir", str(logs))
    frames, remarks = read_video._start(tmp_path / "a.mp4", "rgb24")
    next(frames)
    for _ in range(200):
        stream, _, rate = read_video._description(remarks)
        assert ("rawvideo" in stream, rate) == (True, 25)
    frames.close()
    assert list(logs.iterdir()) == []


def test_an_ffmpeg_that_does_not_run_is_told(tmp_path, monkeypatch):
    def absent():
        raise RuntimeError("No ffmpeg exe could be found.")

    write_clip(tmp_path / "a.mp4", clip(), {})
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", absent)
    with pytest.raises(MissingDependencyError, match="finds none that runs here"):
        open_video(tmp_path / "a.mp4")


def test_what_cannot_be_shown_faithfully_is_refused(tmp_path):
    write_clip(tmp_path / "a.mp4", clip(), {})
    for transfer, name in (("smpte2084", "PQ"), ("arib-std-b67", "HLG")):
        ffmpeg("-i", tmp_path / "a.mp4", "-vf", f"setparams=color_trc={transfer}", tmp_path / "hdr.mp4")
        with pytest.raises(InputError, match=rf"hdr.mp4 is HDR \({name}\); convert it to SDR"):
            open_video(tmp_path / "hdr.mp4")
    ffmpeg("-display_rotation", 30, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "askew.mp4")
    with pytest.raises(InputError, match=r"rotated by -?30 degrees"):
        open_video(tmp_path / "askew.mp4")
    ffmpeg("-i", tmp_path / "a.mp4", "-vf", "setsar=9", tmp_path / "wide.mp4")
    with pytest.raises(InputError, match="9 times as wide as high"):
        open_video(tmp_path / "wide.mp4")
    Image.fromarray(clip()[0]).save(tmp_path / "cover.png")
    song = ["-f", "lavfi", "-i", "sine=d=1", "-i", tmp_path / "cover.png", "-map", "0", "-map", "1"]
    ffmpeg(*song, "-c:v", "png", "-disposition:v", "attached_pic", tmp_path / "song.m4a")
    with pytest.raises(InputError, match="has no video in it"):
        open_video(tmp_path / "song.m4a")


def test_high_pixels_become_square_without_losing_lines(tmp_path):
    write_clip(tmp_path / "a.mp4", clip(), {})
    ffmpeg("-i", tmp_path / "a.mp4", "-vf", "setsar=1/2", tmp_path / "high.mp4")
    assert next(open_video(tmp_path / "high.mp4").frames).shape == (96, 64, 3)


def test_reading_may_stop_early(tmp_path):
    write_clip(tmp_path / "a.mp4", clip(17, 480, 640), {})
    frames = open_video(tmp_path / "a.mp4").frames
    assert next(frames).shape == (480, 640, 3)
    del frames  # ends ffmpeg, which still has frames to write


def test_what_is_no_video_is_refused_in_a_line(tmp_path):
    for name, content, words in (
        ("a.mp4", b"junk" * 100, "cannot be decoded"),
        ("b.webp", b"junk", "is not a picture"),
        ("c.gif", b"", "is empty"),
        ("d.mov", b"", "cannot be decoded"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} {words}") as refused:
            list(open_video(tmp_path / name).frames)
        assert "\n" not in str(refused.value)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "sound.mp4")
    with pytest.raises(InputError, match="cannot be decoded"):
        open_video(tmp_path / "sound.mp4")
    with pytest.raises(InputError, match="no such file"):
        open_video(tmp_path / "nothing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without pictures"):
        open_video(tmp_path / "empty")
