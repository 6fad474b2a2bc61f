"""Pictures of every common kind are read; what is no usable picture is refused in one line."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from contextanyone_core.errors import InputError
from contextanyone_core.media.image_io import (
    MIN_SIDE,
    images_to_frames,
    picture_size,
    picture_to_images,
    read_picture,
    read_shown,
)


@pytest.fixture
def colours() -> Image.Image:
    """Left half orange, right half blue, 40 wide and 24 high."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20] = (230, 120, 20)
    pixels[:, 20:] = (20, 60, 200)
    return Image.fromarray(pixels)


def read(image: Image.Image, path: Path, **options) -> np.ndarray:
    image.save(path, **options)
    picture = read_picture(path)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    return picture


P3_TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])  # of light


def display_p3() -> bytes:
    """littleCMS's sRGB profile with the primaries of a phone's screen, of which it says so."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189)}
    for tag, xyz in (primaries | {b"bXYZ": (0.15710, 0.06657, 0.78407)}).items():
        (place,) = struct.unpack_from(">I", profile, profile.index(tag) + 4)
        struct.pack_into(">3i", profile, place + 8, *(round(65536 * value) for value in xyz))
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "P3 D".encode("utf-16-be"))


def near(pixel, wanted, atol=3):
    return np.abs(np.asarray(pixel, int) - np.asarray(wanted, int)).max() <= atol


def test_a_reference_shows_something(colours, tmp_path):
    """A frame of a folder may be empty; a character that is transparent everywhere is a mistake of its export."""
    clear = colours.convert("RGBA")
    clear.putalpha(0)
    for name, image in (("clear.png", clear), ("clear.webp", clear), ("grey.png", clear.convert("LA"))):
        image.save(tmp_path / name)
        assert read_picture(tmp_path / name).min() == 255
        with pytest.raises(InputError, match=f"{name} is transparent everywhere; give a picture that shows"):
            read_shown(tmp_path / name)
    clear.putpixel((3, 3), (0, 0, 0, 255))
    for image in (clear, colours, colours.convert("L")):
        image.save(tmp_path / "seen.png")
        assert np.array_equal(read_shown(tmp_path / "seen.png"), read_picture(tmp_path / "seen.png"))


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "ppm", "gif"])
def test_lossless_formats_are_read_exactly(colours, tmp_path, ending):
    assert np.array_equal(read(colours, tmp_path / f"a.{ending}"), np.asarray(colours))


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_lossy_formats_are_read(colours, tmp_path, ending):
    picture = read(colours, tmp_path / f"a.{ending}", quality=95)
    assert near(picture[4, 4], (230, 120, 20), 12)


def test_the_name_does_not_decide_the_format(colours, tmp_path):
    colours.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.txt")
    assert np.array_equal(read_picture(tmp_path / "a.txt"), np.asarray(colours))


def test_grey_and_black_and_white(colours, tmp_path):
    grey = read(colours.convert("L"), tmp_path / "l.png")
    assert (grey[..., 0] == grey[..., 1]).all()
    assert set(np.unique(read(colours.convert("1"), tmp_path / "one.png"))) <= {0, 255}


def test_palette_with_and_without_transparency(colours, tmp_path):
    palette = colours.quantize(4)
    assert near(read(palette, tmp_path / "p.png")[0, 0], (230, 120, 20))
    hidden = palette.getpixel((0, 0))
    seen = read(palette, tmp_path / "pt.png", transparency=hidden)
    assert near(seen[0, 0], (255, 255, 255))
    assert near(seen[0, 30], (20, 60, 200))


def test_transparency_is_laid_over_white(colours, tmp_path):
    layer = colours.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize((40, 24)))
    picture = read(layer, tmp_path / "rgba.png")
    alpha = np.asarray(layer)[..., 3:] / 255
    wanted = np.asarray(colours) * alpha + 255 * (1 - alpha)
    assert np.abs(picture - wanted).max() <= 1.5
    clear = Image.new("LA", (20, 20), (0, 0))
    assert (read(clear, tmp_path / "la.png") == 255).all()
    keyed = read(colours, tmp_path / "trns.png", transparency=(20, 60, 200))
    assert near(keyed[0, 30], (255, 255, 255))


def test_sixteen_bits_keep_their_shades(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (16, 1))
    for ending in ("png", "tiff"):
        picture = read(Image.fromarray(ramp), tmp_path / f"i16.{ending}")
        assert np.array_equal(picture[..., 0], (ramp >> 8).astype(np.uint8))


def test_sixteen_bit_colour(tmp_path):
    path = tmp_path / "rgb48.png"
    path.write_bytes(png(16, 16, depth=16, colour=2, row=b"\x80\x00\xff\xff\x10\x00" * 16))
    assert near(read_picture(path)[0, 0], (128, 255, 16), 1)


def test_floating_point_is_refused(tmp_path):
    Image.fromarray(np.ones((20, 20), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(InputError, match="floating-point"):
        read_picture(tmp_path / "f.tiff")


def test_cmyk(colours, tmp_path):
    picture = read(colours.convert("CMYK"), tmp_path / "cmyk.jpg", quality=95)
    assert near(picture[4, 4], (230, 120, 20), 15)


def in_srgb(pixel) -> np.ndarray:
    """What a Display P3 colour is in sRGB, by the two curves and the matrix between."""
    value = np.asarray(pixel) / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = (P3_TO_SRGB @ light).clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
def test_the_colours_of_an_embedded_profile_become_srgb(tmp_path, ending):
    """Phones save Display P3: skin and clothes would be paler than they are seen."""
    skin = (214, 160, 138)
    assert not near(in_srgb(skin), skin, 6)
    image = Image.new("RGB", (32, 32), skin)
    options = {"quality": 100} | ({"lossless": True} if ending == "webp" else {})
    assert near(read(image, tmp_path / f"p3.{ending}", icc_profile=display_p3(), **options)[5, 5], in_srgb(skin), 2)
    if ending in ("png", "webp", "tiff"):
        image.putalpha(255)
        image.putpixel((0, 0), (*skin, 0))
        layer = read(image, tmp_path / f"alpha.{ending}", icc_profile=display_p3(), **options)
        assert near(layer[5, 5], in_srgb(skin), 2)
        assert near(layer[0, 0], (255, 255, 255), 0)


def test_a_profile_that_says_nothing_changes_nothing(colours, tmp_path):
    """sRGB's own, a damaged one, one of another number of channels."""
    own, broken = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), display_p3()[:300]
    for name, profile in (("own", own), ("broken", broken), ("nonsense", b"icc")):
        assert np.array_equal(read(colours, tmp_path / f"{name}.png", icc_profile=profile), np.asarray(colours))
    grey = colours.convert("L")
    assert np.array_equal(read(grey, tmp_path / "grey.png", icc_profile=display_p3())[..., 0], np.asarray(grey))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :8] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    assert np.array_equal(read(stored, tmp_path / "r.png", exif=exif), upright)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animated_gives_the_first_frame(tmp_path, ending):
    first, second = Image.new("RGB", (32, 32), (250, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 250))
    picture = read(first, tmp_path / f"a.{ending}", save_all=True, append_images=[second])
    assert near(picture[5, 5], (250, 0, 0), 12)


@pytest.mark.parametrize("size", [(4000, 16), (16, 4000)])
def test_very_wide_and_very_tall(tmp_path, size):
    assert read(Image.new("RGB", size, "red"), tmp_path / "w.png").shape == (size[1], size[0], 3)


def test_huge_pictures_are_averaged_down(tmp_path):
    stripes = np.zeros((40, 9000, 3), np.uint8)
    stripes[:, ::3] = 255
    picture = read(Image.fromarray(stripes), tmp_path / "huge.png")
    assert picture.shape == (14, 3000, 3)
    assert near(picture[3, 3], (85, 85, 85))


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(path)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    return text


def test_what_is_no_picture_is_refused(tmp_path):
    assert "no such" in refused(tmp_path / "missing.png")
    assert "folder" in refused(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty" in refused(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("this is a letter, not a picture" * 100)
    assert "not a picture" in refused(tmp_path / "text.png")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n")
    assert "not a picture" in refused(tmp_path / "page.eps")
    assert "no such" in refused(tmp_path / "text.png" / "below.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular" in refused(tmp_path / "pipe.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated_is_refused(tmp_path, ending, part):
    whole = tmp_path / f"whole.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(data[: int(len(data) * part)])
    refused(cut)


def test_too_small_is_refused(tmp_path):
    for size in ((1, 1), (MIN_SIDE - 1, 100), (100, MIN_SIDE - 1)):
        Image.new("RGB", size).save(tmp_path / "small.png")
        assert f"{size[0]} x {size[1]}" in refused(tmp_path / "small.png")


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    def never(self, *args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    for side in (20_000, 10_000, 8_100):
        path = tmp_path / f"bomb{side}.png"
        path.write_bytes(png(side, side, depth=8, colour=2, row=b"", rows=0))
        assert "64,000,000" in refused(path)


def test_pixels_to_images_and_back():
    picture = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    images = picture_to_images(picture)
    assert images.shape == (1, 3, 16, 24)
    assert images.min() >= -1
    assert images.max() <= 1
    assert np.array_equal(images_to_frames(images[:, :, None])[0], picture)
    over = torch.tensor([-7.0, 7.0]).expand(3, 1, 2, 2)
    assert set(np.unique(images_to_frames(over))) == {0, 255}
    with pytest.raises(InputError, match="finite"):
        images_to_frames(torch.full((3, 1, 2, 2), float("nan")))
    with pytest.raises(InputError, match="shape"):
        images_to_frames(torch.zeros(2, 3, 1, 2, 2))


def png(width: int, height: int, *, depth: int, colour: int, row: bytes, rows: int | None = None) -> bytes:
    """A PNG by hand, for headers that Pillow would not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * (height if rows is None else rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_the_size_of_a_picture_that_is_turned_in_its_xmp_alone(tmp_path):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    for name in ("a.jpg", "a.webp", "a.png"):
        Image.new("RGB", (64, 32)).save(tmp_path / name, xmp=xmp, pnginfo=info)
        height, width = read_picture(tmp_path / name).shape[:2]
        assert (width, height) == picture_size(tmp_path / name) == (32, 64)
