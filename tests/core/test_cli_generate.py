"""`contextanyone generate` and `inspect` on a tiny stack: what is asked for is what is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.cli.clips import refuse_output_among
from contextanyone_core.encoders.reference import DualEncoder
from contextanyone_core.errors import InputError
from contextanyone_core.generation.domain_check import HEADER_KEY, domain_threshold, round_trip_psnr
from contextanyone_core.media.image_io import picture_to_images
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.weights.safetensors_file import read_header

SMALL = ("--frames", "5", "--size", "32x32", "--steps", "1", "--guidance-scale", "1")


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with one good picture, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    picture(40, 30).save("good.png")
    return tmp_path


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 200 // width, y * 200 // height, x * 0 + 90], -1).astype(np.uint8))


@pytest.fixture
def made(desk, tiny_folder, capsys):
    """Run `generate` with tiny weights at a small size; gives what stands on stdout and stderr."""

    def run(*words: str | Path) -> tuple[list[str], str]:
        code = cli.main([str(word) for word in ("generate", "--weights", tiny_folder, *SMALL, *words)])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert not list(desk.rglob("*.part"))
        return out.splitlines(), err

    return run


def decode(path: Path | str) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


PROMPTS = ("--first", "A woman in the park.", "--later", "She waves.")
ONE = ("--reference", "good.png", *PROMPTS)


def test_a_clip_its_sheet_and_what_made_it(made, desk, tiny_folder):
    asked = ("--negative", "blurred", "--shift", "2", "--guidance-interval", "0.1", "0.9")
    out, err = made(*ONE, "--out", "out.mp4", "--seed", "5", *asked)
    assert out == ["out.mp4", "out.contact.png"]
    assert "out.mp4:" in err
    assert "1/1" in err
    assert decode("out.mp4").shape == (5, 32, 32, 3)
    metadata = read_metadata(desk / "out.mp4")
    assert metadata == read_metadata(desk / "out.contact.png")
    assert (metadata["first"], metadata["later"], metadata["seed"]) == ("A woman in the park.", "She waves.", 5)
    assert metadata["negative"] == "blurred"
    assert metadata["settings"]["shift"] == 2
    assert metadata["settings"]["guidance"] == {"name": "cfg", "guidance_scale": 1, "interval": [0.1, 0.9]}
    assert metadata["settings"]["num_frames"] == 5
    assert metadata["versions"]["torch"] == torch.__version__
    assert set(metadata["weights"]) == {f.name for f in tiny_folder.iterdir()}
    assert all(len(sha) == 64 for sha in metadata["weights"].values())
    assert metadata["references"][0]["name"] == "good.png"


def test_every_shard_is_in_the_record(tiny_folder, desk, capsys):
    folder = Path(shutil.copytree(tiny_folder, desk / "weights"))
    whole = folder / "transformer.safetensors"
    tensors, metadata = load_file(whole), read_header(whole).metadata
    names = sorted(tensors)
    held = {name: f"t-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(held.values()):
        save_file({name: tensors[name] for name in names if held[name] == shard}, folder / shard, metadata)
    (folder / "t.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
    whole.unlink()
    assert cli.main(["generate", "--weights", str(folder), *SMALL, *ONE, "--out", "out.webp"]) == 0, capsys.readouterr()
    files = {f"{part}.safetensors" for part in ("vae", "text_encoder", "image_encoder")} | set(held.values())
    assert set(read_metadata(desk / "out.webp")["weights"]) == files


def test_the_same_command_gives_the_same_pixels(made, desk):
    words = (*ONE, "--steps", "2", "--seed", "3", "--out")
    for name in ("a.mp4", "b.mp4"):
        made(*words, name)
    assert np.array_equal(decode("a.mp4"), decode("b.mp4"))
    assert (desk / "a.mp4").read_bytes() == (desk / "b.mp4").read_bytes()
    made(*words, "c.mp4", "--seed", "4")
    assert not np.array_equal(decode("a.mp4"), decode("c.mp4"))


def test_references_of_a_command_are_encoded_once_for_all_clips(made, desk, monkeypatch):
    encoded, latents_of = [], DualEncoder.latents

    def note(encoder, image, size):
        encoded.append(size)
        return latents_of(encoder, image, size)

    monkeypatch.setattr(DualEncoder, "latents", note)
    picture(30, 40).save("other.png")
    both = ("--reference", "good.png", "--reference", "other.png")
    made(*both, "--first", "A woman.", "--later", "She waves.", "--later", "She sits.", "--out", "out.mp4")
    assert encoded == [(32, 32), (32, 32)]
    made(*both, "--first", "A woman.", "--later", "She sits.", "--out", "alone.mp4")
    assert np.array_equal(decode("out-2.mp4"), decode("alone.mp4"))


@pytest.mark.parametrize("name", ["o.gif", "o.webp", "frames"])
def test_other_endings(made, desk, name):
    out, _ = made(*ONE, "--out", name)
    assert out[0] == name
    if name == "frames":
        assert len(list((desk / name).glob("frame_*.png"))) == 5
    else:
        with Image.open(name) as image:
            assert (image.format.lower(), image.size) == (name[2:], (32, 32))
    assert read_metadata(desk / name)["first"] == "A woman in the park."


def test_several_laters_are_several_clips(made, desk):
    out, _ = made(*ONE, "--later", "She jumps.", "--out", "walk.webp")
    assert out == ["walk-1.webp", "walk-1.contact.png", "walk-2.webp", "walk-2.contact.png"]
    assert [read_metadata(desk / f"walk-{i}.webp")["later"] for i in (1, 2)] == ["She waves.", "She jumps."]


def test_a_file_of_prompts(made, desk):
    lines = [
        {"first": "A man.", "later": "He sits.", "out": "sit.gif", "seed": 9},
        {"later": "\u4ed6\u5728\u6325\u624b \U0001f44b"},
        {"first": "Only seen."},
    ]
    text = "\n\n\ufeff".join(json.dumps(line) for line in lines)  # as of files that were joined
    (desk / "p.jsonl").write_text(f"\ufeff{text}\n\ufeff\n")
    (desk / "clips").mkdir()
    words = ("--reference", "good.png", "--prompts", "p.jsonl", "--first", "A woman.", "--seed", "4")
    out, _ = made(*words, "--out", "clips")
    assert out[::2] == ["clips/sit.gif", "clips/clip-002.mp4", "clips/clip-003.mp4"]
    found = [read_metadata(desk / path) for path in out[::2]]
    assert [(m["first"], m["later"], m["seed"]) for m in found] == [
        ("A man.", "He sits.", 9),
        ("A woman.", "\u4ed6\u5728\u6325\u624b \U0001f44b", 4),
        ("Only seen.", "", 4),
    ]
    assert len(list(desk.iterdir())) == 3
    assert len(list((desk / "clips").iterdir())) == 6


@pytest.mark.parametrize(
    "prompt",
    [
        "\u4e00\u4e2a\u5973\u4eba\u5728\u516c\u56ed\u91cc",
        "\U0001f3c3\u200d\u2640\ufe0f\U0001f4a8\U0001f3d6\ufe0f",
        "\u00dcn\u00efcödé \ufdfa",
        "-- not an option",
    ],
)
def test_prompts_of_every_script(made, desk, prompt):
    made("--reference", "good.png", f"--first={prompt}", "--out", "o.webp")
    assert read_metadata(desk / "o.webp")["first"] == prompt


@pytest.mark.parametrize("kind", ["grey", "palette", "rgba", "sixteen", "cmyk", "exif", "animated", "wide", "tall"])
def test_pictures_of_every_kind(made, kind):
    base = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    name, image, options = {
        "grey": ("p.png", base.convert("L"), {}),
        "palette": ("p.png", base.quantize(8), {"transparency": 0}),
        "rgba": ("p.png", base.convert("RGBA"), {}),
        "sixteen": ("p.png", sixteen, {}),
        "cmyk": ("p.jpg", base.convert("CMYK"), {}),
        "exif": ("p.jpg", base, {"exif": exif}),
        "animated": ("p.gif", base, {"save_all": True, "append_images": [picture(40, 30).rotate(90)]}),
        "wide": ("p.png", picture(5000, 16), {}),
        "tall": ("p.png", picture(16, 5000), {}),
    }[kind]
    image.save(name, **options)
    made("--reference", name, *PROMPTS, "--out", "o.webp")


def test_without_a_reference_it_says_so(made):
    _, err = made(*PROMPTS, "--out", "o.webp")
    assert "plain text to video" in err


def test_every_option_changes_the_video(made, desk):
    seen = set()
    for words in (
        (),
        ("--reference", "other.png"),
        ("--emphasis", "0"),
        ("--guidance-scale", "3"),
        ("--guidance", "dual", "--guidance-scale", "3"),
        ("--guidance", "dual", "--guidance-scale", "3", "--reference-scale", "2"),
        ("--guidance-scale", "3", "--negative", "a dog"),
        ("--sampler", "euler"),
        ("--sampler", "dpmpp_2m"),
        ("--shift", "9"),
        ("--frames", "9"),
        ("--size", "32x48"),
        ("--steps", "3"),
        ("--dtype", "bfloat16"),
    ):
        picture(30, 40).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save("other.png")
        made(*ONE, "--steps", "4", *words, "--out", "f")
        pixels = b"".join(np.asarray(Image.open(path)).tobytes() for path in sorted((desk / "f").iterdir()))
        assert pixels not in seen, words
        seen.add(pixels)
        shutil.rmtree(desk / "f")


def test_the_options_are_known_without_torch():
    code = "import sys, contextanyone_core.cli.generate_options; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Redraws:
    """A VAE that gives back what it got, off by a constant."""

    def __init__(self, off: float) -> None:
        self.off = off

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents + self.off


@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (500, 16)])
def test_round_trip_psnr_is_that_of_the_picture_without_its_margins(shape):
    image = picture_to_images(np.zeros((*shape, 3), np.uint8))
    assert round_trip_psnr(Redraws(0.2), image) == pytest.approx(20, abs=0.01)
    assert round_trip_psnr(Redraws(0.0), image) > 1000


def test_a_picture_from_elsewhere_is_warned_of(desk, tiny_folder, capsys):
    weights = Path(shutil.copytree(tiny_folder, desk / "weights"))
    file = weights / "vae.safetensors"
    metadata = read_header(file).metadata
    assert domain_threshold(metadata) is None
    for threshold, warned in (("90.0", True), ("-90.0", False), ("words", False)):
        save_file(load_file(file), file, metadata | {HEADER_KEY: threshold})
        assert cli.main(["generate", "--weights", "weights", *SMALL, *ONE, "--out", "o.webp"]) == 0
        assert ("warning: good.png is far" in capsys.readouterr().err) is warned


def inspect(capsys, path) -> str:
    assert cli.main(["inspect", str(path)]) == 0
    return capsys.readouterr().out


def test_no_clip_comes_among_the_frames_of_the_pose(tmp_path):
    (tmp_path / "pose").mkdir()
    refuse_output_among(tmp_path / "a.mp4", [tmp_path / "pose", None])
    with pytest.raises(InputError, match=r"a\.mp4 would come among the files of .*pose, which is read"):
        refuse_output_among(tmp_path / "pose" / "a.mp4", [None, tmp_path / "pose"])


def test_inspect_weights(desk, tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr("contextanyone_core.weights.checkpoint.load_file", None)
    for part, kind in (
        ("transformer", "contextanyone-transformer"),
        ("vae", "wan-vae"),
        ("text_encoder", "umt5-encoder"),
        ("image_encoder", "clip-vision"),
    ):
        said = inspect(capsys, tiny_folder / f"{part}.safetensors")
        assert f"kind:        {kind}" in said
        assert "F32" in said
        assert "parts:       complete" in said
        assert " = " in said
    said = inspect(capsys, tiny_folder)
    assert said.count("kind: ") == 4
    assert "missing files: none" in said


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "image_encoder"])
def test_inspect_says_what_is_missing_and_unknown(desk, tiny_folder, capsys, part):
    file = tiny_folder / f"{part}.safetensors"
    tensors = load_file(file)
    gone = min(tensors)
    del tensors[gone]
    tensors["stranger\x1b[31m"] = torch.zeros(2)
    save_file(tensors, desk / "odd.safetensors", read_header(file).metadata)
    said = inspect(capsys, desk / "odd.safetensors")
    assert f"missing:     1\n  {gone}\n" in said
    assert "unknown:     1\n  stranger\\x1b[31m" in said
    save_file(tensors, desk / "plain.safetensors")
    said = inspect(capsys, desk / "plain.safetensors")
    assert "config:      none in the header" in said or "config:      inferred from the shapes" in said


def test_inspect_a_folder_with_other_names_and_a_damaged_file(desk, tiny_folder, capsys):
    folder = Path(shutil.copytree(tiny_folder, desk / "weights"))
    (folder / "vae.safetensors").rename(folder / "Wan2.1_VAE.safetensors")
    assert "missing files: none" in inspect(capsys, folder)
    (folder / "broken.safetensors").write_bytes(b"no header")
    said = inspect(capsys, folder)
    assert said.count("kind: ") == 4
    assert f"file:        {folder / 'broken.safetensors'}\nunreadable:  " in said
    (folder / "broken.safetensors").unlink()
    (folder / "Wan2.1_VAE.safetensors").unlink()
    assert "missing files: vae.safetensors" in inspect(capsys, folder)


def test_inspect_a_clip(made, desk, capsys):
    made(*ONE, "--out", "o.gif")
    assert '"later": "She waves."' in inspect(capsys, "o.gif")
    assert json.loads(inspect(capsys, "o.contact.png")) == read_metadata(desk / "o.gif")


def test_version_and_help_are_quick_to_say(capsys):
    for words in (["--version"], ["--help"], ["generate", "--help"], ["inspect", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
        assert "contextanyone" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "usage" in capsys.readouterr().err
