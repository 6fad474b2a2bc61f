"""Seeking: frames from any position equal those decoded from the first frame, for every structure of key frames."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from training.data import seeking
from training.data.media import MediaError, probe, read_frames

COUNT = 240
FILES = {
    "b_frames.mp4": "-c:v libx264 -g 48 -bf 3",
    "open_gop.mp4": "-c:v libx264 -g 40 -bf 3 -x264-params open-gop=1:b-pyramid=normal",
    "open_gop.mkv": "-c:v libx264 -g 40 -bf 3 -x264-params open-gop=1",
    "one_group.mp4": "-c:v libx264 -g 1000 -bf 2",
    "refresh.mp4": "-c:v libx264 -x264-params intra-refresh=1:keyint=40",
    "transport.ts": "-c:v libx264 -g 48 -bf 3",
    "hevc_open.mp4": "-c:v libx265 -x265-params open-gop=1:keyint=40:bframes=4:log-level=none",
    "ten_bit.mp4": "-c:v libx264 -pix_fmt yuv420p10le -g 48",
    "vp9.webm": "-c:v libvpx-vp9 -g 48 -deadline realtime -cpu-used 8",
    "mpeg4.avi": "-c:v mpeg4 -g 48 -bf 2",
    "vfr.mp4": "-c:v libx264 -g 48 -bf 3 -fps_mode vfr",
    "shifted.mp4": "-c:v libx264 -g 48 -bf 3 -output_ts_offset 1.7",
}


def encode(path: Path, options: str) -> None:
    source = f"testsrc2=size=64x48:rate=25:duration={COUNT / 25}"
    if path.name.startswith("vfr"):
        source += ",setpts='(N+floor(N/3)+mod(N,2)*0.3)/(25*TB)'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "lavfi", "-i", source]
    subprocess.run([*command, *options.split(), str(path)], check=True)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_seek_gives_the_frames_of_decoding_from_the_first(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    encode(path, FILES[name])
    count = len(probe(path).times)
    whole = read_frames(path, range(count))
    assert count == pytest.approx(COUNT, abs=1)
    for start in (*range(33, count - 3, 7), count - 1):
        indexes = list(range(start, min(start + 3, count)))
        assert torch.equal(read_frames(path, indexes), whole[indexes]), start
    with pytest.raises(MediaError, match=f"has no frame {count}"):
        read_frames(path, [count])


def test_a_seek_decodes_no_more_than_its_group_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b_frames.mp4"
    encode(path, FILES["b_frames.mp4"])
    decoded = []
    searched = np.searchsorted

    def counted(times: np.ndarray, pts: int) -> int:
        decoded.append(pts)
        return int(searched(times, pts))

    monkeypatch.setattr(seeking.np, "searchsorted", counted)
    read_frames(path, [200])
    assert 0 < len(decoded) <= 48


def test_files_whose_times_do_not_name_their_frames_are_decoded_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"  # no container, so no times
    encode(path, "-c:v libx264 -g 48 -bf 0")
    whole = read_frames(path, range(COUNT))
    assert torch.equal(read_frames(path, [100, 102]), whole[[100, 102]])
