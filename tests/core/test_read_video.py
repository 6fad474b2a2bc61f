"""Reading clips: every format returns the frames that were written, upright, at their rate; others are refused."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
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
