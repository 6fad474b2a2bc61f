"""`generate --personal`: the person's LoRA, regions where a pose is given, and one line for what does not fit."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pose_cases import figure, sequence
from safetensors.torch import save_file

from contextanyone_core import cli
from contextanyone_core.cli.generate_options import generate_parser
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.pose.body import Body
from contextanyone_core.pose.openpose import to_json
from contextanyone_core.prompts import rows_naming
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.file_hash import sha256_of
from contextanyone_core.weights.personal_file import PersonalFile

SMALL = ("--frames", "5", "--size", "32x32", "--steps", "1", "--guidance-scale", "1")
WIDTH = 48


@pytest.fixture(scope="module")
def wide_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny stack with condition channels."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("wide") / "weights"))
    narrow = load_transformer(folder / "transformer.safetensors")
    wide = ContextAnyoneTransformer(replace(narrow.config, condition_dim=32))
    wide.load_state_dict(
        narrow.state_dict() | {"patch_embedding.weight": 0.3 * torch.randn(narrow.config.dim, 48, 1, 2, 2)}
    )
    save_transformer(folder / "transformer.safetensors", wide, dtype=torch.float32)
    return folder


def personal(path, base, width=WIDTH, place="blocks.0.cross_attn.v", **changes):
    torch.manual_seed(3)
    stem = f"diffusion_model.{place}"
    tensors = {f"{stem}.lora_A.weight": torch.randn(4, width), f"{stem}.lora_B.weight": torch.randn(width, 4)}
    body = Body(np.full(17, 30.0))
    stated = PersonalFile("zuv", "woman", "A zuv woman", sha256_of(base / "transformer.safetensors"), body)
    save_file(tensors, path, replace(stated, **changes).metadata())


@pytest.fixture
def desk(tmp_path, monkeypatch, wide_folder):
    monkeypatch.chdir(tmp_path)
    bodies = [figure(neck=(160.0, 60.0 + index), lengths=np.full(17, 15.0)) for index in range(5)]
    Path("dance.json").write_text(json.dumps(to_json(sequence(bodies, (320, 320)))))
    personal("me.safetensors", wide_folder)
    return tmp_path


def run(folder, *words):
    return cli.main([str(word) for word in ("generate", "--weights", folder, *SMALL, *words)])


def frames_of(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))])


def test_a_pose_gives_regions_to_a_prompt_that_names_the_person(desk, wide_folder, capsys):
    for name, words in {
        "lora": ("--lora", "me.safetensors"),
        "me": ("--personal", "me.safetensors"),
        "lora_posed": ("--lora", "me.safetensors", "--pose", "dance.json", "--pose-body", "me.safetensors"),
        "me_posed": ("--personal", "me.safetensors", "--pose", "dance.json", "--pose-body", "me.safetensors"),
    }.items():
        assert run(wide_folder, *words, "--first", "A zuv woman in the park.", "--out", name) == 0
        said = capsys.readouterr().err
        assert ('write "zuv woman" in the prompt, as in "A zuv woman ..."' in said) is name.startswith("me")
        assert "another base" not in said
        assert "does not say" not in said
    made = {name: frames_of(name) for name in ("lora", "me", "lora_posed", "me_posed")}
    assert np.array_equal(made["lora"], made["me"])
    assert not np.array_equal(made["lora_posed"], made["me_posed"])


def test_a_prompt_without_the_name_has_none_and_the_clip_says_whose_file_it_was(desk, wide_folder, capsys):
    posed = ("--pose", "dance.json", "--first", "A woman in the park.")
    assert run(wide_folder, "--lora", "me.safetensors:0.5", *posed, "--out", "lora.webp") == 0
    capsys.readouterr()
    assert run(wide_folder, "--personal", "me.safetensors:0.5", *posed, "--out", "me.webp") == 0
    assert 'The prompt does not say "zuv woman"' in capsys.readouterr().err
    assert Path("lora.webp").stat().st_size
    lora, found = (read_metadata(Path(f"{name}.webp")) for name in ("lora", "me"))
    assert found.pop("personal") == {"name": "me.safetensors", "trigger": "zuv woman"}
    assert found == lora
    assert found["loras"][0]["strength"] == 0.5
    frames = [np.asarray(Image.open(f"{name}.webp").convert("RGB")) for name in ("lora", "me")]
    assert np.array_equal(*frames)


def test_another_base_of_the_same_size_is_a_warning(desk, wide_folder, capsys):
    personal("other.safetensors", wide_folder, base_hash="ab" * 32)
    words = ("--personal", "other.safetensors", "--first", "A zuv woman.", "--frames", "1", "--out", "out")
    assert run(wide_folder, *words) == 0
    assert "other.safetensors was trained on another base (SHA-256 abababababab..." in capsys.readouterr().err


def test_a_base_with_a_clip_branch_needs_no_image_encoder_where_no_picture_is_read(desk, wide_folder, capsys):
    """Wan2.1-Fun-Control as published, beside the encoders that a personal model is trained with."""
    folder = desk / "fun"
    folder.mkdir()
    for name in ("vae", "text_encoder"):
        shutil.copy(wide_folder / f"{name}.safetensors", folder)
    ours = load_transformer(wide_folder / "transformer.safetensors")
    base = ContextAnyoneTransformer(replace(ours.config, emphasize=False))
    base.load_state_dict({name: ours.state_dict()[name] for name in base.state_dict()})
    save_transformer(folder / "transformer.safetensors", base, dtype=torch.float32)
    assert base.config.image_dim is not None
    personal("mine.safetensors", folder)
    words = ("--personal", "mine.safetensors", "--pose", "dance.json", "--pose-body", "mine.safetensors")
    words += ("--model", "wan", "--first", "A zuv woman.")
    for memory in ("auto", "low"):
        assert run(folder, *words, "--memory", memory, "--out", memory) == 0
        assert "another base" not in capsys.readouterr().err
    assert run(folder, "--first", "A woman.", "--out", "other") == 2
    assert "image_encoder.safetensors is missing" in capsys.readouterr().err


def test_the_documents_commands_make_videos_of_wans_size(desk):
    for name in ("PERSONAL", "POSES"):
        text = (Path(__file__).parents[2] / "docs" / f"{name}.md").read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        commands = [shlex.split(line) for line in blocks.splitlines() if line.startswith("contextanyone generate")]
        assert commands
        for words in commands:
            Path("pose_lora.safetensors").touch()
            options = generate_parser().parse(words[2:])
            assert (options.size, options.frames, options.device) == ((480, 832), 81, "cuda")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--personal", "narrow.safetensors"), r"base of another size.*for 32 x 32, and this model has 48 x 48"),
        (("--personal", "deep.safetensors"), r"another size: its update of blocks\.9\.cross_attn\.v.*no such weight"),
        (("--personal", "plain.safetensors"), "plain.safetensors is no personal file"),
        (("--personal", "gone.safetensors"), "gone.safetensors is no file"),
        (("--personal", "void.safetensors"), "void.safetensors is empty"),
        (("--personal", "me.safetensors", "--model", "vace"), "--personal is for the models on our transformer"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(desk, wide_folder, capsys, words, hint):
    personal("narrow.safetensors", wide_folder, width=32)
    personal("deep.safetensors", wide_folder, place="blocks.9.cross_attn.v")
    save_file({"x": torch.zeros(1)}, "plain.safetensors")
    Path("void.safetensors").write_bytes(b"")
    assert run(wide_folder, "--first", "A zuv woman.", *words, "--out", "out.webp") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "write" not in line]) == 1
    assert re.search(hint, lines[-1])
    assert not Path("out.webp").exists()


@pytest.mark.parametrize(
    ("text", "class_name", "named"),
    [
        ("A zuv woman is in the park, the Zuv  woman dances; zuv sits.", "woman", ["zuv woman", "Zuv woman", "zuv"]),
        ("(zuv woman's) hat", "woman", ["zuv woman"]),
        ("A woman near azuv woman and zuvi.", "woman", []),
        ("zuv", "woman", ["zuv"]),
        ("zuv woman", "woman", ["zuv woman"]),
        ("zuv young  woman", "young woman", ["zuv young woman"]),
        ("\u4e00\u4e2azuv \u5973\u4eba\u5728\u8dd1\u6b65", "\u5973\u4eba", ["zuv \u5973\u4eba"]),
    ],
)
def test_the_tokens_of_every_name_are_found(tiny_text, text, class_name, named):
    """Of this vocabulary z and v are not: they are tokens of bytes."""
    assert _named(tiny_text, text, "zuv", class_name) == named


@pytest.mark.parametrize(
    ("text", "name", "class_name", "named"),
    [
        (
            "A z\u00fcv woman, Z\u00dcV WOMAN; \u00fcz\u00fcv woman.",
            "z\u00fcv",
            "woman",
            ["z\u00fcv woman", "Z\u00dcV WOMAN"],
        ),
        (
            "\u0417\u0423\u0412 woman, \u0437\u0443\u0432\u0430 woman",
            "\u0437\u0443\u0432",
            "woman",
            ["\u0417\u0423\u0412 woman"],
        ),
        ("A ZUV \u00c9L\u00c8VE runs.", "zuv", "\u00e9l\u00e8ve", ["ZUV \u00c9L\u00c8VE"]),
        ("\u4e00\u4e2a\u5c0f\u660e \u5973\u4eba\u5728", "\u5c0f\u660e", "\u5973\u4eba", ["\u5c0f\u660e \u5973\u4eba"]),
        ("zuv\ub294 woman", "zuv", "woman", ["zuv"]),
    ],
)
def test_names_of_any_letters_are_found_in_capitals_and_not_within_words(tiny_text, text, name, class_name, named):
    assert _named(tiny_text, text, name, class_name) == named


def _named(tiny_text, text, name, class_name):
    """What the marked tokens of a text say, run by run."""
    pieces = tiny_text.split(text)
    assert len(pieces) == tiny_text.count_tokens(text) - 1
    rows = rows_naming(pieces, name, class_name)
    starts = [row for row in rows if row - 1 not in rows]
    runs = [[row for row in rows if start <= row and set(range(start, row)) <= set(rows)] for start in starts]
    return [tiny_text._tokenizer.decode([tiny_text.tokenize([text])[0][row] for row in run]) for run in runs]
