"""Where the shots of a video change, by the numbers of its frames, also where these do not come at equal times."""

from fractions import Fraction

import av
import numpy as np
import pytest

from data_pipeline.pixels.shots import Probe, Shots
from data_pipeline.rows import Row
from training.data.video import video_frames
from training.data.video_cuts import hard_cuts
from training.personal.shot import open_clip

EVEN = [1000 / 30] * 119
PHONE = [1000 / 24] * 60 + [1000 / 30] * 59
SLOW_END = [1000 / 30] * 60 + [1000 / 15] * 59
SCREEN = [1000 / 15] * 60 + [1000 / 30] * 59
JITTER = np.random.default_rng(1).choice([33, 34, 67], 119, p=[0.6, 0.35, 0.05])
STEPS = {"even": EVEN, "phone": PHONE, "slow end": SLOW_END, "screen": SCREEN, "jitter": JITTER}


def two_shots():
    """120 frames, 64 x 96, of a square that moves before two places; the second begins at frame 60."""
    down, across = np.mgrid[:64, :96]
    first = np.stack([across * 2, down * 3, across + down], axis=-1)
    second = np.stack([255 - down * 3, np.full_like(down, 40), 255 - across], axis=-1)
    frames = np.stack([first] * 60 + [second] * 60).astype(np.uint8)
    for number, frame in enumerate(frames):
        frame[20:40, 10 + number % 60 : 25 + number % 60] = (230, 180, 140)
    return frames


def write_at(path, frames, steps):
    """A video whose frames are so many milliseconds apart."""
    unit = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.time_base = stream.codec_context.time_base = unit
        for picture, time in zip(frames, np.cumsum([0, *steps]), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("name", STEPS)
def test_a_cut_has_its_frame_whatever_the_times_of_the_frames(name, ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    write_at(path, two_shots(), STEPS[name])
    row = Probe(tmp_path)(Row(source="x", sha256="0" * 64, video=path.name))
    shots = [(part.scores["shots.start"], part.scores["shots.stop"]) for part in Shots(tmp_path)(row)]
    assert list(dict.fromkeys(shots)) == [(0, 60), (60, 120)]  # a long shot has several rows
    assert open_clip(path).stop in (60, 120)


def test_cuts_are_those_that_pyscenedetect_finds_by_itself_in_a_video_of_constant_rate(tmp_path):
    from scenedetect import ContentDetector, detect

    rng, frames = np.random.default_rng(0), []
    for length in (9, 3, 20, 14, 30, 4, 16):  # some shots are shorter than the shortest that it tells apart
        place = np.kron(rng.integers(0, 255, (6, 9, 3)), np.ones((50, 50, 1)))
        frames += [np.roll(place, 3 * number, axis=1) for number in range(length)]
    write_at(tmp_path / "x.mp4", np.stack(frames).astype(np.uint8), [40] * (len(frames) - 1))
    its = [begin.frame_num for begin, _ in detect(str(tmp_path / "x.mp4"), ContentDetector(27.0, min_scene_len=9))[1:]]
    assert hard_cuts(video_frames(tmp_path / "x.mp4"), 27.0, 9) == its
    assert len(its) >= 3


def test_frames_that_change_their_size_are_compared_all_the_same():
    frames = two_shots()
    larger = [frame.repeat(2, axis=0).repeat(2, axis=1) for frame in frames[40:]]
    assert hard_cuts([*frames[:40], *larger], 27.0, 9) == [60]
