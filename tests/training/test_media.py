"""Videos and pictures of every kind are read as a player shows them, or refused in one line."""

import os
import struct
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import read_picture
from contextanyone_core.media.video_io import write_clip
from training.data.buckets import BucketSettings
from training.data.check import check_files
from training.data.manifest import ManifestRow, read_manifest, write_manifest
from training.data.media import MediaError, check_frames, content_hash, probe, read_frames
from training.data.video_windows import frames_available

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 180, 40), (40, 60, 210), (120, 120, 120)
STEP = 8  # by which a frame is darker
EIGHT = {  # a, b, c, d of the display matrix, and what a player shows
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, 1): lambda x: x[:, ::-1],
    (1, 0, 0, -1): lambda x: x[::-1],
    (-1, 0, 0, -1): lambda x: x[::-1, ::-1],
    (0, 1, 1, 0): lambda x: x.transpose(1, 0, 2),
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (0, -1, 1, 0): lambda x: np.rot90(x, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).transpose(1, 0, 2),
}


def count_frames(path):
    """How many frames there are, all of which decode."""
    count = len(probe(path).times)
    check_frames(path, 0, count, lambda: None)
    with pytest.raises(MediaError, match=f"has no frame {count} that decodes"):
        check_frames(path, 0, count + 1, lambda: None)
    return count


def quarters(height=48, width=64, frames=20):
    """Red, green, blue and grey quarters; the upper left one darkens from frame to frame."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    y, x = height // 2, width // 2
    clip[:, :y, :x], clip[:, :y, x:], clip[:, y:, :x], clip[:, y:, x:] = RED, GREEN, BLUE, GREY
    clip[:, :y, :x, 0] -= STEP * np.arange(frames, dtype=np.uint8)[:, None, None]
    return clip


def ffmpeg(folder, *words):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, words)]
    subprocess.run(command, cwd=folder, check=True)


def first(path):
    return read_frames(path, [0])[0].permute(1, 2, 0).numpy()


def near(image, wanted, atol=12):
    assert image.shape == wanted.shape
    return np.abs(image.astype(int) - wanted).mean() < atol


def pictures(folder, names, frames=None):
    folder.mkdir()
    for name, frame in zip(names, quarters() if frames is None else frames, strict=False):
        Image.fromarray(frame).save(folder / name)
    return folder


def with_matrix(path, matrix):
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix", EIGHT)
def test_a_display_matrix_turns_and_mirrors_as_in_a_player(tmp_path, matrix):
    path = tmp_path / "clip.mp4"
    write_clip(path, quarters(), {})
    with_matrix(path, matrix)
    wanted = EIGHT[matrix](quarters()[0])
    found = probe(path)
    assert (found.height, found.width) == wanted.shape[:2]
    assert near(first(path), wanted)
    ffmpeg(tmp_path, "-i", "clip.mp4", "-frames:v", "1", "player.png")
    assert near(first(path), np.asarray(Image.open(tmp_path / "player.png").convert("RGB")))


@pytest.mark.parametrize("matrix", [(1, 1, -1, 1), (2, 0, 0, 1)])
def test_a_display_matrix_of_another_kind_is_refused(tmp_path, matrix):
    write_clip(tmp_path / "clip.mp4", quarters(), {})
    with_matrix(tmp_path / "clip.mp4", matrix)
    with pytest.raises(MediaError, match="write it upright"):
        probe(tmp_path / "clip.mp4")


@pytest.mark.parametrize("marks", ["none and default", "cover and none"])
def test_the_default_stream_is_read_never_cover_art(tmp_path, marks):
    write_clip(tmp_path / "clip.mp4", quarters(), {})
    Image.new("RGB", (64, 64)).save(tmp_path / "cover.png")
    given = {
        "none and default": ("two.mkv", "0", "default"),
        "cover and none": ("two.mp4", "attached_pic", "0"),
    }[marks]
    name, *dispositions = given
    words = ["-c", "copy"] if name.endswith("mp4") else ["-c:v:0", "mjpeg", "-c:v:1", "copy"]
    words += [f"-disposition:v:{number}={mark}" for number, mark in enumerate(dispositions)]
    words = [part for word in words for part in word.split("=")]
    ffmpeg(tmp_path, "-i", "cover.png", "-i", "clip.mp4", "-map", "0:v", "-map", "1:v", *words, name)
    found = probe(tmp_path / name)
    assert (len(found.times), found.width, found.height) == (20, 64, 48)
    assert near(first(tmp_path / name), quarters()[0])
    assert count_frames(tmp_path / name) == 20


def test_music_with_a_cover_is_no_video(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "cover.png")
    words = ["-f", "lavfi", "-i", "sine=duration=1", "-i", "cover.png", "-map", "0", "-map", "1", "-c:v", "copy"]
    ffmpeg(tmp_path, *words, "-disposition:v", "attached_pic", "music.mp4")
    with pytest.raises(MediaError, match="has no video"):
        probe(tmp_path / "music.mp4")


@pytest.mark.parametrize("ending", ["webp", "png", "gif", "avif"])
def test_an_animated_picture_is_a_clip(tmp_path, ending):
    """Its frames have their own times, here unequal ones."""
    path, frames = tmp_path / f"clip.{ending}", quarters()
    shots = [Image.fromarray(frame) for frame in frames]
    delays = [60, 40, *[50] * 18]
    shots[0].save(path, save_all=True, append_images=shots[1:], duration=delays)
    found = probe(path)
    assert found.times == pytest.approx(np.cumsum([0, *delays[:-1]]) / 1000)
    assert (found.width, found.height) == (64, 48)
    shown = read_frames(path, [0, 7, 19, 7]).permute(0, 2, 3, 1).numpy()
    for image, wanted in zip(shown, frames[[0, 7, 19, 7]], strict=True):
        assert near(image, wanted)
    assert np.array_equal(shown[1], shown[3])
    assert shown[2][4, 4, 0] < shown[0][4, 4, 0] - 15 * STEP
    assert count_frames(path) == 20
    assert np.array_equal(read_picture(path), shown[0])  # as a reference it is its first frame


def test_what_an_animated_png_shows_elsewhere_is_no_frame(tmp_path):
    shots = [Image.fromarray(frame) for frame in quarters()]
    other = Image.new("RGB", (64, 48))
    other.save(tmp_path / "clip.png", save_all=True, append_images=shots, duration=62.5, default_image=True)
    assert len(probe(tmp_path / "clip.png").times) == 20
    assert near(first(tmp_path / "clip.png"), quarters()[0])


def test_transparency_of_an_animation_lies_over_white(tmp_path):
    shots = [Image.fromarray(frame).convert("RGBA") for frame in quarters()]
    for shot in shots:
        shot.putalpha(Image.fromarray(np.tile(np.repeat([255, 0], 32).astype(np.uint8), (48, 1))))
    shots[0].save(tmp_path / "clip.webp", save_all=True, append_images=shots[1:], duration=62, lossless=True)
    shown = read_frames(tmp_path / "clip.webp", [5])[0]
    assert bool((shown[:, :, 32:] == 255).all())
    assert near(shown[:, :24, :32].permute(1, 2, 0).numpy(), quarters()[5][:24, :32])


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9", "qtrle", "png"])
def test_transparency_of_a_video_lies_over_white(tmp_path, codec):
    """The colour that is hidden under it shows nowhere; FFmpeg's own VP8 and VP9 decoders drop the transparency."""
    layers = np.concatenate([quarters(), np.full((20, 48, 64, 1), 255, np.uint8)], axis=-1)
    layers[:, :, 32:, 3] = 0
    (tmp_path / "raw").write_bytes(layers.tobytes())
    source = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", "16", "-i", "raw", "-c:v", codec, "-pix_fmt"]
    web = ["yuva420p", "-auto-alt-ref", "0", "-b:v", "1M", "clip.webm"]
    words = {"qtrle": ["argb", "clip.mov"], "png": ["rgba", "clip.mov"]}.get(codec, web)
    ffmpeg(tmp_path, *source, *words)
    name = words[-1]
    assert len(probe(tmp_path / name).times) == count_frames(tmp_path / name) == 20
    wanted = quarters()[3].copy()
    wanted[:, 32:] = 255
    assert near(read_frames(tmp_path / name, [3])[0].permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(("aspect", "size"), [("2/1", (48, 128)), ("1/2", (96, 64)), ("1/1", (48, 64))])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_become_square(tmp_path, aspect, size, turned):
    write_clip(tmp_path / "plain.mp4", quarters(), {})
    words = ["-vf", f"setsar={aspect}", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    ffmpeg(tmp_path, "-i", "plain.mp4", *words, "clip.mp4")
    if turned:
        with_matrix(tmp_path / "clip.mp4", (0, 1, -1, 0))
    wanted = np.asarray(Image.fromarray(quarters()[0]).resize((size[1], size[0]), Image.Resampling.NEAREST))
    wanted = np.rot90(wanted, -1) if turned else wanted
    found = probe(tmp_path / "clip.mp4")
    assert (found.height, found.width) == wanted.shape[:2]
    assert near(first(tmp_path / "clip.mp4"), wanted)


def test_pixels_of_an_absurd_shape_are_refused(tmp_path):
    write_clip(tmp_path / "plain.mp4", quarters(), {})
    ffmpeg(tmp_path, "-i", "plain.mp4", "-vf", "setsar=9/1", "-c:v", "libx264", "clip.mp4")
    with pytest.raises(MediaError, match="9 times as wide as high"):
        probe(tmp_path / "clip.mp4")


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_refused(tmp_path, transfer):
    write_clip(tmp_path / "plain.mp4", quarters(), {})
    tags = f"setparams=color_trc={transfer}:color_primaries=bt2020:colorspace=bt2020nc"
    ffmpeg(tmp_path, "-i", "plain.mp4", "-vf", tags, "-c:v", "libx264", "hdr.mp4")
    with pytest.raises(MediaError, match=r"is HDR .*convert it to SDR"):
        probe(tmp_path / "hdr.mp4")


@pytest.mark.parametrize("options", [(), ("-bf", "0"), ("-g", "7", "-bf", "3")])
def test_a_joined_stream_plays_at_its_own_speed(tmp_path, options):
    """Two transport streams end to end: the second one's times start anew."""
    write_clip(tmp_path / "plain.mp4", quarters(), {})
    ffmpeg(tmp_path, "-i", "plain.mp4", "-c:v", "libx264", *options, "-pix_fmt", "yuv420p", "part.ts")
    part = (tmp_path / "part.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    times = probe(tmp_path / "joined.ts").times
    assert len(times) == count_frames(tmp_path / "joined.ts") == 40
    assert np.diff(times) == pytest.approx([1 / 16] * 39, abs=2e-5)
    assert frames_available(times) == 40
    shown = read_frames(tmp_path / "joined.ts", range(40))[:, 0, 8, 8].int()
    assert (shown[:20] - shown[20:]).abs().max() <= 6
    assert shown[0] > shown[19] + 15 * STEP


def test_times_that_are_unequal_stay(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame, moment in zip(quarters(), (0, 50, 120, 400), strict=False):
            shot = av.VideoFrame.from_ndarray(frame)
            shot.pts = moment
            container.mux(stream.encode(shot))
        container.mux(stream.encode(None))
    assert probe(tmp_path / "clip.mkv").times == pytest.approx([0, 0.05, 0.12, 0.4])


def test_hidden_files_and_folders_are_no_frames(tmp_path):
    names = [f"{number:04d}.png" for number in range(5)]
    folder = pictures(tmp_path / "clip", names)
    before = content_hash(folder)
    (folder / "._0000.png").write_bytes(b"\0\5\x16\7 of macOS")
    (folder / ".DS_Store").write_bytes(b"\0")
    pictures(folder / ".ipynb_checkpoints", ["0000-checkpoint.png"])
    pictures(folder / "more.png", names)
    assert len(probe(folder).times) == count_frames(folder) == 5
    assert near(first(folder), quarters()[0])
    assert content_hash(folder) == before


@pytest.mark.parametrize("names", [[f"frame_{n}.png" for n in range(1, 21)], [f"{n}-a.png" for n in range(95, 115)]])
def test_frames_stand_in_the_order_of_their_numbers(tmp_path, names):
    folder = pictures(tmp_path / "clip", names)
    shown = read_frames(folder, range(20))[:, 0, 4, 4].tolist()
    assert shown == [RED[0] - STEP * number for number in range(20)]


def test_pictures_of_different_sizes_are_dropped_by_the_first_look(tmp_path):
    folder = pictures(tmp_path / "clip", [f"{number}.png" for number in range(6)])
    Image.new("RGB", (64, 40)).save(folder / "4.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    row = {"id": "a", "video": "clip", "reference": "a.png", "prompt_first": "A.", "source": "s", "license": "l"}
    write_manifest(tmp_path / "m.jsonl", [ManifestRow(**row)])
    settings = BucketSettings(sizes=("32x32",), frames=(5,))
    (drop,) = check_files(read_manifest(tmp_path / "m.jsonl"), settings, decode=False).dropped
    assert drop.reason == "decode_error"
    assert "different sizes: 4.png is 64 x 40, 0.png 64 x 48" in drop.detail
    with pytest.raises(MediaError, match="different sizes"):
        count_frames(folder)


def test_sizes_are_those_of_the_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("0.jpg", "1.png", "2.webp", "3.tiff"):
        Image.fromarray(quarters()[0]).save(folder / name, exif=exif)
    found = probe(folder)
    assert (found.width, found.height) == (48, 64)
    assert read_frames(folder, range(4)).shape == (4, 3, 64, 48)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.png", "clip"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    if name == "clip":
        pictures(path, ["0.png"])
    os.mkfifo(path / "1.png" if name == "clip" else path)
    for read in (probe, content_hash, count_frames):
        with pytest.raises(MediaError, match="not a regular file"):
            read(path)


@pytest.mark.parametrize("high", [255, 65535, 2**31 - 1])
def test_grey_of_an_unknown_range_is_refused(tmp_path, high):
    """It became black, or white, as its values lay."""
    ramp = np.linspace(0, high, 32 * 32).reshape(32, 32).astype(np.int32)
    Image.fromarray(ramp).save(tmp_path / "grey.tiff")
    with pytest.raises(InputError, match="integers of unknown range; save it with 8 or 16 bits"):
        read_picture(tmp_path / "grey.tiff")


def test_sixteen_bit_grey_of_a_ppm_is_read(tmp_path):
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(tmp_path / "grey.ppm")
    assert set(np.unique(read_picture(tmp_path / "grey.ppm"))) == {40_000 >> 8}
