"""Sizes of a video: pixels, latents, tokens; a size that cannot be made names its neighbours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextanyone_core.cli.parsing import frame_count, frame_size
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.shapes import VideoShape, check_frames, check_side

WAN = ContextAnyoneConfig.wan_1_3b()


def test_wans_usual_video_has_its_published_sizes():
    shape = VideoShape(81, 480, 832)
    assert shape.latents(WAN) == (21, 60, 104)
    assert shape.latents_shape(WAN, batch=2) == (2, 16, 21, 60, 104)
    assert shape.token_count(WAN) == 32760
    assert shape.picture == VideoShape(1, 480, 832)
    assert shape.picture.token_count(WAN) == 1560
    assert str(shape) == "832x480x81"


@given(st.integers(0, 500), st.integers(1, 256), st.integers(1, 256))
def test_a_possible_video_fills_whole_latents_and_tokens(k, rows, columns):
    shape = VideoShape(4 * k + 1, 16 * rows, 16 * columns)
    check_frames(shape.num_frames)
    check_side(shape.height, "height")
    assert shape.latents(WAN) == (k + 1, 2 * rows, 2 * columns)
    assert shape.token_count(WAN) == (k + 1) * rows * columns


@given(st.integers(1, 4000))
def test_a_side_is_possible_or_both_neighbours_are_named(side):
    try:
        check_side(side, "width")
    except InputError as error:
        near = [int(number) for number in re.findall(r"\d+", str(error).partition("such as")[2])]
        assert near == [n for n in range(16, 4096, 16) if abs(n - side) < 16]
        assert side % 16
    else:
        assert side % 16 == 0


@given(st.integers(1, 1997))
def test_a_number_of_frames_is_possible_or_both_neighbours_are_named(frames):
    try:
        check_frames(frames)
    except InputError as error:
        near = [int(number) for number in re.findall(r"\d+", str(error).partition("such as")[2])]
        assert near == [n for n in range(1, 2002, 4) if abs(n - frames) < 4]
        assert frames % 4 != 1
    else:
        assert frames % 4 == 1


def test_the_command_line_says_the_same():
    with pytest.raises(Exception, match="80 is given; Wan needs 4k \\+ 1 frames, such as 77 or 81"):
        frame_count("80")
    with pytest.raises(Exception, match="100x128 has a side of 100; it must be a multiple of 16, such as 96 or 112"):
        frame_size("100x128")
    with pytest.raises(Exception, match="has a side of 4112; at most 4096 is possible"):
        frame_size("4112x128")
