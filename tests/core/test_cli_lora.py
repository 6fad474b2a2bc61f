"""`generate --lora`: LoRAs and strengths take effect, and are in the clip's record."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.cli.generate_options import lora_file
from contextanyone_core.media.video_io import read_metadata
from contextanyone_core.weights.checkpoint import load_transformer, save_transformer
from contextanyone_core.weights.lora import load_lora, merge_loras

SMALL = ("--frames", "1", "--size", "32x32", "--steps", "1", "--guidance-scale", "1", "--first", "A woman.")


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder in which the command runs, with two LoRAs for the tiny transformer (48 wide)."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    for name, place in (("one", "blocks.0.self_attn.q"), ("two", "blocks.1.cross_attn.o")):
        stem = f"diffusion_model.{place}"
        tensors = {f"{stem}.lora_A.weight": torch.randn(4, 48), f"{stem}.lora_B.weight": torch.randn(48, 4)}
        save_file(tensors, f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def run(desk, tiny_folder, capsys):
    """Run `generate` on the tiny stack; gives exit code and stderr."""

    def run(*words: str | Path) -> tuple[int, str]:
        given = [str(word) for word in ("generate", "--weights", tiny_folder, *SMALL, *words)]
        code = cli.main(given)
        out, err = capsys.readouterr()
        assert bool(out) is (code == 0), err
        return code, err

    return run


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(Path(name) / "frame_0001.png" if Path(name).is_dir() else name).convert("RGB"))


def test_strengths_act_and_stand_in_the_clip(run, desk):
    for words in ((), ("one.safetensors:0",), ("one.safetensors",), ("one.safetensors:0.5", "two.safetensors:-1")):
        loras = [word for lora in words for word in ("--lora", lora)]
        assert run(*loras, "--out", f"o{len(words)}{''.join(words)[15:]}.webp".replace(":", "_"))[0] == 0
    made = sorted(path.name for path in desk.glob("*.webp"))
    plain, zero, full, both = (next(n for n in made if n.startswith(s)) for s in ("o0", "o1_0", "o1.", "o2"))
    assert np.array_equal(pixels(plain), pixels(zero))
    assert not np.array_equal(pixels(plain), pixels(full))
    assert not np.array_equal(pixels(full), pixels(both))
    assert read_metadata(desk / plain)["loras"] == []
    digests = {n: hashlib.sha256((desk / n).read_bytes()).hexdigest() for n in ("one.safetensors", "two.safetensors")}
    assert read_metadata(desk / both)["loras"] == [
        {"name": "one.safetensors", "sha256": digests["one.safetensors"], "strength": 0.5},
        {"name": "two.safetensors", "sha256": digests["two.safetensors"], "strength": -1},
    ]


def test_it_is_the_weights_with_the_update_merged(run, desk, tiny_folder):
    assert run("--lora", "one.safetensors:0.5", "--out", "lora.webp")[0] == 0
    merged = desk / "merged"
    merged.mkdir()
    for file in tiny_folder.iterdir():
        (merged / file.name).write_bytes(file.read_bytes())
    path = merged / "transformer.safetensors"
    model = load_transformer(path)
    merge_loras(model, [(load_lora("one.safetensors", model), 0.5)])
    save_transformer(path, model, dtype=torch.float32)
    assert run("--weights", merged, "--out", "weights.webp")[0] == 0
    assert np.array_equal(pixels("lora.webp"), pixels("weights.webp"))


def test_keys_that_are_not_used_are_one_line(run, desk):
    tensors = load_file("one.safetensors") | {"diffusion_model.stran\x1bger\n.lora_A.weight": torch.zeros(4, 48)}
    save_file(tensors, "odd.safetensors")
    code, err = run("--lora", "odd.safetensors", "--out", "o.webp")
    assert code == 0
    line = next(line for line in err.splitlines() if "odd.safetensors" in line)
    assert line.startswith("contextanyone: odd.safetensors: 1 keys are not used, such as diffusion_model.stran")
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("missing.safetensors", "is no file"),
        ("missing.safetensors:1", "is no file"),
        ("one.safetensors:", "from -100 to 100"),
        ("one.safetensors:much", "from -100 to 100"),
        ("one.safetensors:nan", "from -100 to 100"),
        ("one.safetensors:1e9", "from -100 to 100"),
        ("wrong.safetensors", "for (64, 64), the weight is (48, 48)"),
        ("other.safetensors", "holds no LoRA"),
        ("text.safetensors", "text.safetensors"),
        ("nan.safetensors", "NaN"),
    ],
)
def test_wrong_files_and_numbers(run, desk, word, hint):
    stem = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {f"{stem}.lora_A.weight": torch.zeros(4, 64), f"{stem}.lora_B.weight": torch.zeros(64, 4)},
        "wrong.safetensors",
    )
    save_file({"stranger.weight": torch.zeros(4)}, "other.safetensors")
    save_file({key: value * float("nan") for key, value in load_file("one.safetensors").items()}, "nan.safetensors")
    (desk / "text.safetensors").write_text("not a weight file\n" * 9)
    code, err = run("--lora", word, "--out", "o.webp")
    assert code == 2
    assert hint in err
    assert err.count("\n") == 1
    assert not (desk / "o.webp").exists()


def test_a_clip_never_replaces_a_lora(run, desk):
    (desk / "one.safetensors").rename("one.webp")
    code, err = run("--lora", "one.webp:0.5", "--out", "one.webp")
    assert (code, "of this run" in err) == (2, True)


def test_vace_has_none(run):
    code, err = run("--lora", "one.safetensors", "--model", "vace", "--out", "o.webp")
    assert (code, "--model vace leave it out" in err) == (2, True)


def test_a_name_may_hold_a_colon(desk):
    odd = Path("a:2")
    (desk / "one.safetensors").rename(odd)
    assert (lora_file("a:2").path, lora_file("a:2").strength) == (odd, 1)
    assert (lora_file("a:2:3").path, lora_file("a:2:3").strength) == (odd, 3)
