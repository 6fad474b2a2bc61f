"""Files of the trainer: pictures are read back as they were written, and a failed write is an error."""

import numpy as np
import pytest
from PIL import Image

from training.files import read_grey, write_png


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_a_picture_is_read_back_as_it_was_written(tmp_path, shape):
    picture = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    if picture.ndim == 2:
        assert np.array_equal(read_grey(tmp_path / "a.png"), picture)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_png(tmp_path / "missing" / "a.png", np.zeros((6, 5, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_file_that_is_no_picture_is_an_error(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png cannot be read as a picture"):
        read_grey(tmp_path / "a.png")
