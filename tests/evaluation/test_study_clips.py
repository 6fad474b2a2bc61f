"""The clips of a study: at its rate, each at its own speed."""

import numpy as np
from PIL import Image

from evaluation.study.clips import write_alike
from evaluation.videos import read_frames


def test_clips_keep_their_speed_at_the_studys_rate(tmp_path):
    """Five seconds at 16 and at 8 frames a second: a grey that grows with the time."""
    for name, rate in (("ours", 16), ("theirs", 8)):
        (tmp_path / name).mkdir()
        for index in range(5 * rate):
            shade = round(20 + 40 * index / rate)
            Image.new("RGB", (32, 32), (shade, shade, shade)).save(tmp_path / name / f"{index:03d}.png", duration=0)
        frames = [Image.open(file) for file in sorted((tmp_path / name).glob("*.png"))]
        frames[0].save(
            tmp_path / f"{name}.webp", save_all=True, append_images=frames[1:], duration=1000 // rate, lossless=True
        )
    targets = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    write_alike([tmp_path / "ours.webp", tmp_path / "theirs.webp"], targets)
    ours, theirs = (read_frames(path).mean((1, 2, 3)) for path in targets)
    assert len(ours) == len(theirs) >= 77
    assert np.abs(ours - theirs).max() < 8
