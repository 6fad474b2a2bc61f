"""What cannot be done as asked: one line on stderr, exit code 2, no traceback, nothing written."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.weights.safetensors_file import read_header


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with one good picture, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save("good.png")
    return tmp_path


@pytest.fixture
def refused(desk, capsys):
    """Run a command that must be refused; gives its one line."""

    def run(*words: str | Path) -> str:
        before = sorted(desk.rglob("*"))
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("contextanyone: ")
        assert err.count("\n") == 1, err
        assert sorted(desk.rglob("*")) == before
        return err

    return run


BASE = ("generate", "--reference", "good.png", "--first", "A woman.", "--later", "She waves.", "--out", "out.mp4")


def test_commands(refused):
    assert "Did you mean generate?" in refused("generat")
    assert "Did you mean --version?" in refused("--versoin")
    assert "'b' is left over" in refused("inspect", "a", "b")
    assert "name the option again before each of several files" in refused(*BASE, "--reference", "good.png", "good.png")
    assert "required: file; an example: contextanyone inspect FILE." in refused("inspect")
    said = refused(*BASE[:-2])
    assert 'required: --out; an example: contextanyone generate --reference P.png --first "..."' in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--frames", "80"), "such as 77 or 81"),
        (("--frames", "0"), "from 1 to"),
        (("--frames", "-3"), "from 1 to"),
        (("--frames", "nan"), "from 1 to"),
        (("--frames", "inf"), "from 1 to"),
        (("--frames", "17.0"), "from 1 to"),
        (("--frames", "9" * 5000), "from 1 to"),
        (("--size", "100x128"), "such as 96"),
        (("--size", "128x8"), "such as 16"),
        (("--size", "0x0"), "such as 16"),
        (("--size=-16x16",), "WIDTHxHEIGHT"),
        (("--size", "-16x16"), "expected one argument"),
        (("--size", "nanxinf"), "WIDTHxHEIGHT"),
        (("--size", "128"), "WIDTHxHEIGHT"),
        (("--size", "99999x16"), "4096"),
        (("--steps", "0"), "from 1 to"),
        (("--steps", "-1"), "from 1 to"),
        (("--steps", "1e9"), "from 1 to"),
        (("--seed", "-1"), "from 0 to"),
        (("--seed", str(2**64)), "from 0 to"),
        (("--guidance-scale", "nan"), "from 0 to 100"),
        (("--guidance-scale", "inf"), "from 0 to 100"),
        (("--guidance-scale", "-1"), "from 0 to 100"),
        (("--guidance-scale", "1e300"), "from 0 to 100"),
        (("--emphasis", "nan"), "from 0 to 100"),
        (("--emphasis=-inf",), "from 0 to 100"),
        (("--reference-scale", "-2", "--guidance", "dual"), "from 0 to 100"),
        (("--shift", "0"), "above 0"),
        (("--shift", "nan"), "above 0"),
        (("--reference-scale", "3"), "--guidance dual"),
        (("--guidance", "dul"), "Did you mean dual?"),
        (("--sampler", "unipcc"), "Did you mean unipc?"),
        (("--guidance-interval", "0.9", "0.1"), "guidance interval is 0.9 to 0.1; two noise levels"),
        (("--guidance-interval", "0", "2"), "'2' is given; a number from 0 to 1 is needed"),
        (("--guidance-interval", "0.5"), "expected 2 arguments"),
        (("--model", "vace", "--guidance-interval", "0", "1"), "leave --guidance-interval out"),
        (("--sampler", "xyz"), "euler, unipc, dpmpp_2m"),
        (("--dtype", "float8"), "Did you mean float"),
        (("--device", "toaster"), "no device 'toaster'"),
        (("--device", "cuda:999"), "cuda:999"),
        (("--device", "cdua"), "Did you mean cuda?"),
        (("--steps",), "expected one argument"),
        (("--later", "-hello"), "expected one argument; write --later=TEXT for a text that begins with a dash"),
        (("--",), "'--' is left over"),
        (("--", "--first", "A woman."), "'--' is left over"),
        (("--stesp", "3"), "Did you mean --steps?"),
        (("--step", "3"), "Did you mean --steps?"),
        (("leftover",), "put quotes"),
        (("--first", ""), "empty"),
        (("--first", " \t\n"), "empty"),
        (("--later", "\u3000"), "empty"),
        (("--first", "\udcff"), "UTF-8"),
        (("--negative", "\udcff"), "UTF-8"),
        (("--prompts", "good.png"), "exclude"),
        (("--out", "-"), "cannot be written to standard output"),
        (("--out", "./-"), "cannot be written to standard output"),
        *(
            ((option, ""), f"{option}: the name is empty")
            for option in ("--out", "--reference", "--weights", "--prompts")
        ),
        (("--weights", "nowhere"), "no folder"),
        (("--weights", "good.png"), "no folder"),
    ],
)
def test_options(refused, words, hint):
    assert hint in refused(*BASE, *words)


def test_an_empty_name_is_not_the_working_folder(refused):
    assert "the name is empty" in refused("inspect", "")
    assert "the name is empty" in refused("convert", "", "--naming", "diffusers", "--out", "a.safetensors")
    assert "the name is empty" in refused("init", "--backbone", "", "--out", "a.safetensors")


def test_a_pipe_is_refused_at_once(refused, desk):
    """Reading one waits for a writer that never comes."""
    for name in ("pipe", "pipe.safetensors", "pipe.mp4", "pipe.png"):
        os.mkfifo(desk / name)
        assert "is not a regular file" in refused("inspect", name)
    for option in ("--backbone", "--clip-branch"):
        assert "is not a regular file" in refused("init", option, "pipe", "--out", "a.safetensors")
    assert "is not a regular file" in refused("convert", "pipe", "--naming", "diffusers", "--out", "a.safetensors")
    assert "is not a regular file" in refused("generate", "--reference", "pipe.png", *BASE[3:])


def test_there_must_be_a_prompt_and_an_output(refused):
    assert "no prompt" in refused("generate", "--reference", "good.png", "--out", "out.mp4")
    assert "--out" in refused("generate", "--first", "A woman.")
    assert "Did you mean --out?" in refused("generate", "--first", "A woman.", "--outt", "out.mp4")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("missing.png", "no such picture"),
        ("folder", "is a folder"),
        ("text.png", "not a picture"),
        ("cut.png", "damaged"),
        ("empty.png", "is empty"),
        ("dot.png", "1 x 1"),
        ("bomb.png", "64,000,000"),
    ],
)
def test_pictures(refused, desk, name, hint):
    (desk / "folder").mkdir()
    (desk / "text.png").write_text("not a picture\n" * 50)
    data = (desk / "good.png").read_bytes()
    (desk / "cut.png").write_bytes(data[: len(data) // 2])
    (desk / "empty.png").touch()
    Image.new("RGB", (1, 1)).save("dot.png")
    if name == "bomb.png":
        Image.new("1", (20_000, 20_000)).save("bomb.png")
    assert hint in refused(*BASE, "--reference", name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("missing/out.mp4", "does not exist"),
        ("good.png/out.mp4", "does not exist"),
        ("/proc/self/out.mp4", "cannot write"),
        ("out.avi", ".mp4"),
        ("good.png", ".mp4"),
        ("o.mp4/", "as a folder's name does, and in .mp4 as a file's"),
        (".", "plain file name"),
        ("full", "not empty"),
    ],
)
def test_outputs(refused, desk, name, hint):
    (desk / "full").mkdir()
    (desk / "full" / "x").touch()
    assert hint in refused(*BASE, "--out", name)
    if name == ".":
        assert hint in refused(*BASE, "--later", "She jumps.", "--out", name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(refused, desk):
    (desk / "locked").mkdir(mode=0o555)
    assert "cannot write" in refused(*BASE, "--out", "locked/out.mp4")


def test_a_clip_never_replaces_what_the_run_reads(refused, desk):
    shutil.copy("good.png", "out.contact.png")
    assert "of this run" in refused(*BASE, "--reference", "out.contact.png")


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        ("", "no lines"),
        ("not json", "line 1: this is not JSON"),
        ("[1]", "an object"),
        ('{"later": "x"}\n\n{"latr": "x"}', "line 3: 'latr' is unknown; known are first, later, out, seed. Did you"),
        ('{"first": 3}', "a text is needed"),
        ('{"first": "a", "later": " "}', "empty"),
        ('{"seed": 3}', "empty"),
        ('{"first": "\\ud800"}', "UTF-8"),
        ('{"first": "a", "seed": -1}', "seed is -1"),
        ('{"first": "a", "seed": NaN}', "seed is nan"),
        ('{"first": "a", "seed": true}', "seed is True"),
        ('{"first": "a", "out": "../a.mp4"}', "plain file name"),
        ('{"first": "a", "out": "/tmp/a.mp4"}', "plain file name"),
        ('{"first": "a", "out": "sub/a.mp4"}', "plain file name"),
        ('{"first": "a", "out": "a\\\\b.mp4"}', "plain file name"),
        ('{"first": "a", "out": ".."}', "plain file name"),
        ('{"first": "a", "out": ""}', "plain file name"),
        ('{"first": "a", "out": "a\\u0000.mp4"}', "plain file name"),
        ('{"first": "a", "out": "\\ud800.mp4"}', "plain file name"),
        ('{"first": "a", "out": "-"}', "standard output"),
        ('{"\\ud800": "a"}', "is unknown"),
        ('{"first": "a", "seed": [1]}', "seed is a list"),
        ('{"first": "a", "out": "a.avi"}', ".mp4"),
        (
            '{"first": "a", "out": "a.mp4"}\n{"first": "b", "out": "a.mp4"}',
            "a.mp4 would be written over",
        ),
        (
            '{"first": "a", "out": "A.mp4"}\n{"first": "b", "out": "a.mp4"}',
            "a.mp4 would be written over",
        ),
        ('{"first": "a", "out": "a.mp4"}\n{"first": "b", "out": "a.gif"}', "of this run"),
    ],
)
def test_prompt_files(refused, desk, lines, hint):
    (desk / "p.jsonl").write_text(lines)
    (desk / "clips").mkdir()
    assert hint in refused("generate", "--reference", "good.png", "--prompts", "p.jsonl", "--out", "clips")


@pytest.mark.parametrize("start", ["", '{"first": ', '{"first": "a", "seed": ', '{"first": "a", "out": '])
def test_deep_nesting_in_a_file_of_prompts(refused, desk, start):
    """At every depth: Python may read a list that it cannot write."""
    for depth in (*range(800, 1000, 3), 100_000):
        (desk / "p.jsonl").write_text(start + "[" * depth + "]" * depth + "}" * bool(start))
        said = refused("generate", "--reference", "good.png", "--prompts", "p.jsonl", "--out", ".")
        assert "p.jsonl, line 1: " in said
        assert len(said) < 250


def test_prompt_files_that_cannot_be_read(refused, desk):
    (desk / "clips").mkdir()
    (desk / "latin.jsonl").write_bytes(b'{"first": "\xe9"}')
    for name in ("missing.jsonl", "clips", "latin.jsonl"):
        assert "cannot be read" in refused("generate", "--prompts", name, "--out", "clips")
    (desk / "p.jsonl").write_text('{"first": "a"}')
    assert "existing folder" in refused("generate", "--prompts", "p.jsonl", "--out", "nowhere")


def test_over_long_prompts(refused, tiny_folder, desk):
    words = (*BASE, "--weights", tiny_folder)
    assert "more than the 64" in refused(*words, "--first", "A person is waving. " * 40)
    assert "negative" in refused(*words, "--negative", "A person is waving. " * 40)
    (desk / "p.jsonl").write_text('{"first": "a"}\n{"later": "%s"}' % ("w " * 200))
    assert "more than the 64" in refused(
        "generate", "--prompts", "p.jsonl", "--out", ".", "--weights", tiny_folder, "--reference", "good.png"
    )


@pytest.fixture
def weights(tiny_folder, tmp_path_factory) -> Path:
    """A copy of the tiny stack, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("spoilt") / "weights"))


PARTS = ("transformer", "vae", "text_encoder", "image_encoder")


@pytest.mark.parametrize("part", PARTS)
class TestWeights:
    """Each of the four files, spoilt in every way."""

    def test_missing(self, refused, weights, part):
        (weights / f"{part}.safetensors").unlink()
        assert f"{part}.safetensors is missing" in refused(*BASE, "--weights", weights)

    def test_truncated(self, refused, weights, part):
        file = weights / f"{part}.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        assert "truncated" in refused(*BASE, "--weights", weights)

    def test_empty(self, refused, weights, part):
        (weights / f"{part}.safetensors").write_bytes(b"")
        assert "empty" in refused(*BASE, "--weights", weights)

    def test_nan(self, refused, weights, part):
        file = weights / f"{part}.safetensors"
        tensors, metadata = load_file(file), read_header(file).metadata
        next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = float("nan")
        save_file(tensors, file, metadata)
        assert "NaN" in refused(*BASE, "--weights", weights)

    def test_another_model(self, refused, weights, part):
        other = PARTS[(PARTS.index(part) + 1) % 4]
        shutil.copy(weights / f"{other}.safetensors", weights / f"{part}.safetensors")
        assert "needed here" in refused(*BASE, "--weights", weights)

    def test_a_pickle(self, refused, weights, part):
        file = weights / f"{part}.safetensors"
        file.write_bytes(pickle.dumps({"weight": list(range(1000))}))
        assert "pickle" in refused(*BASE, "--weights", weights)
        torch.save({"weight": torch.zeros(10)}, file)
        assert zipfile.is_zipfile(file)
        assert "torch.save" in refused(*BASE, "--weights", weights)

    def test_a_header_that_claims_the_world(self, refused, weights, part):
        file = weights / f"{part}.safetensors"
        file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])
        assert "claims 1152921504606846976 bytes" in refused(*BASE, "--weights", weights)

    def test_a_part_is_missing_inside(self, refused, weights, part):
        file = weights / f"{part}.safetensors"
        tensors, metadata = load_file(file), read_header(file).metadata
        del tensors[next(name for name in tensors if tensors[name].is_floating_point())]
        save_file(tensors, file, metadata)
        assert "missing" in refused(*BASE, "--weights", weights)


def test_inspect(refused, desk, tiny_folder):
    (desk / "w.pth").write_bytes(pickle.dumps({}))
    (desk / "w.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{" * 100)
    (desk / "hollow").mkdir()
    Image.new("RGB", (32, 32)).save(desk / "photo.jpg")
    for name, hint in (
        ("missing.safetensors", "does not exist"),
        ("missing.mp4", "no such file"),
        ("w.pth", "too few"),
        ("w.safetensors", "claims"),
        ("hollow", "without frame_"),
        ("good.png", "does not say"),
        ("photo.jpg", "does not say"),
    ):
        assert hint in refused("inspect", name)


CHEAP = """
import sys
from contextanyone_core.cli.main import main
commands = [
    ["generate", "--first", "a", "--out", "missing/out.mp4"],
    ["generate", "--first", "a", "--out", "out.mp4", "--reference", "missing.png"],
    ["generate", "--first", "a", "--out", "out.mp4", "--reference", "good.png", "--steps", "0"],
    ["generate", "--first", "a", "--out", "out.mp4", "--reference", "good.png", "--sampler", "x"],
    ["generate", "--first", "a", "--out", "out.mp4", "--reference", "good.png", "--weights", "x"],
]
for command in commands:
    assert main(command) == 2
sys.exit(", ".join(name for name in ("torch", "diffusers", "transformers") if name in sys.modules) or 0)
"""


def test_cheap_checks_come_before_torch(desk):
    result = subprocess.run([sys.executable, "-c", CHEAP], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 5


def test_a_refusal_after_torch_is_one_line_too(desk, weights):
    (weights / "vae.safetensors").write_bytes(b"")
    command = [sys.executable, "-c", "import sys; from contextanyone_core.cli import main; sys.exit(main())"]
    result = subprocess.run([*command, *BASE, "--weights", weights], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
