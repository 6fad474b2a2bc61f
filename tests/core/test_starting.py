"""`contextanyone init`: a public backbone with this model's new parts, made in the memory of its largest tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contextanyone_core import cli
from contextanyone_core.checkpoints.convert import convert
from contextanyone_core.checkpoints.init import write_starting_checkpoint
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.weights.checkpoint import describe, load_transformer
from contextanyone_core.weights.comparison import Differences
from contextanyone_core.weights.recognition import recognise
from contextanyone_core.weights.safetensors_file import read_header


def test_it_is_whole_and_generates_what_the_backbone_does(wan_file, tmp_path):
    out = tmp_path / "start.safetensors"
    config = write_starting_checkpoint(wan_file, out)
    assert (config.emphasize, config.image_dim, config.num_heads) == (True, 1280, 2)
    found = describe(out)
    assert found.differences == Differences([], [], [])
    assert found.recognised.stated
    made, backbone = load_transformer(out), load_transformer(wan_file, plain=True)
    latents, timesteps, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 512, 64)
    picture = [torch.randn(1, 16, 1, 4, 4)]
    references = [ReferenceInputs(picture, text, clip) for clip in ([torch.randn(1, 5, 1280)], [])]
    with torch.no_grad():
        plain = backbone(latents, timesteps, text).velocity
        assert torch.equal(made(latents, timesteps, text).velocity, plain)
        new = made(latents, timesteps, text, references=references[0]).velocity
        assert torch.allclose(new, backbone(latents, timesteps, text, references=references[1]).velocity, atol=1e-5)
    made_of = json.loads(read_header(out).metadata["made_of"])
    assert made_of["backbone"].startswith("wan2.1_t2v.safetensors: a Wan 2.1 T2V")


def test_new_parts_start_as_the_model_does(wan_file, tmp_path):
    out = tmp_path / "start.safetensors"
    write_starting_checkpoint(wan_file, out)
    tensors, old = load_file(out), load_file(wan_file)
    new = tensors.keys() - old.keys()
    assert all(torch.equal(tensors[name], old[name]) for name in old)
    for name in new:
        zero = name.endswith("bias") or ".v_img." in name or ".emphasize_attn.o." in name
        assert bool((tensors[name] == 0).all()) == zero, name
        if "norm" in name or name.startswith(("img_emb.proj.0", "img_emb.proj.4")):
            assert bool((tensors[name] == (0 if zero else 1)).all()), name
    q = tensors["blocks.0.emphasize_attn.q.weight"]
    assert q.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)  # Xavier
    assert not torch.equal(q, tensors["blocks.1.emphasize_attn.q.weight"])
    write_starting_checkpoint(wan_file, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_any_form_of_backbone_gives_the_same(wan_file, wan_state, tmp_path):
    write_starting_checkpoint(wan_file, tmp_path / "wanted.safetensors")
    torch.save(wan_state(), tmp_path / "Phantom-Wan.pth")
    convert(wan_file, tmp_path / "diffusers.safetensors", naming="diffusers")
    convert(wan_file, tmp_path / "comfyui.safetensors", naming="comfyui")
    wanted = load_file(tmp_path / "wanted.safetensors")
    for name in ("Phantom-Wan.pth", "diffusers.safetensors", "comfyui.safetensors"):
        write_starting_checkpoint(tmp_path / name, tmp_path / "made.safetensors")
        made = load_file(tmp_path / "made.safetensors")
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[key], value) for key, value in wanted.items()), name
    assert "Phantom-Wan" in str(recognise(tmp_path / "Phantom-Wan.pth"))


def test_the_clip_branch_comes_out_of_another_file(wan_file, clip_file, tmp_path, capsys):
    out = tmp_path / "start.safetensors"
    words = ["init", "--backbone", wan_file, "--clip-branch", clip_file, "--out", out, "--dtype", "bfloat16"]
    assert cli.main([str(word) for word in words]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    tensors, fun = load_file(out), load_file(clip_file)
    branch = [name for name in fun if "_img" in name or name.startswith("img_emb")]
    assert len(branch) == 8 + 2 * 5
    assert all(torch.equal(tensors[name], fun[name].bfloat16()) for name in branch)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["blocks.0.ffn.0.weight"], load_file(wan_file)["blocks.0.ffn.0.weight"].bfloat16())


def test_fun_control_brings_its_condition_channels(control_file, tmp_path, capsys):
    out = tmp_path / "start.safetensors"
    assert cli.main(["init", "--backbone", str(control_file), "--out", str(out)]) == 0
    err = capsys.readouterr().err
    assert f"CLIP branch of {control_file.name}, condition channels of {control_file.name}, Emphasize" in err
    assert "untrained" not in err
    made, backbone = load_transformer(out), load_transformer(control_file, plain=True)
    assert (made.config.condition_dim, made.config.in_dim, made.config.image_dim) == (32, 16, 48)
    assert describe(out).differences == Differences([], [], [])
    tensors = load_file(out)
    assert all(torch.equal(tensors[name], value) for name, value in load_file(control_file).items())
    inputs = torch.randn(1, 16, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 512, 64)
    given = VideoCondition(torch.randn(1, 16, 2, 4, 4), torch.randn(1, 16, 1, 4, 4))
    with torch.no_grad():
        wanted = backbone(*inputs, condition=given).velocity
        assert torch.equal(made(*inputs, condition=given).velocity, wanted)
        assert not torch.allclose(made(*inputs).velocity, wanted, atol=1e-2)


@pytest.mark.parametrize("form", ["original", "diffusers", "comfyui"])
def test_condition_widens_a_text_backbone_with_zeros_and_says_so(wan_file, tmp_path, capsys, form):
    backbone, out = tmp_path / "backbone.safetensors", tmp_path / "start.safetensors"
    convert(wan_file, backbone, naming=form)
    assert cli.main(["init", "--condition", "--backbone", str(backbone), "--out", str(out)]) == 0
    err = capsys.readouterr().err
    assert f"contextanyone: the condition channels of {out} are untrained (zero)" in err
    assert "condition channels new" in err
    new, old = load_file(out)["patch_embedding.weight"], load_file(wan_file)["patch_embedding.weight"]
    assert new.shape == (256, 48, 1, 2, 2)
    assert torch.equal(new[:, :16], old)
    assert not new[:, 16:].any()
    assert describe(out).differences == Differences([], [], [])
    for naming in ("comfyui", "diffusers"):
        convert(out, tmp_path / "other.safetensors", naming=naming)
        assert torch.equal(load_transformer(tmp_path / "other.safetensors").patch_embedding.weight, new)


def test_what_does_not_fit_is_refused(
    wan_file, clip_file, control_file, wan_state, tiny_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_file(wan_state(dim=128, clip=48), "small.safetensors")
    holed = wan_state()
    del holed["blocks.1.norm3.weight"]
    save_file(holed, "holed.safetensors")
    spoilt = wan_state()
    spoilt["head.head.bias"][0] = float("nan")
    save_file(spoilt, "spoilt.safetensors")
    save_file(wan_state() | {"more.weight": torch.ones(3)}, "more.safetensors")
    save_file(wan_state(in_dim=48, clip=48) | {"ref_conv.weight": torch.ones(256, 16, 2, 2)}, "v1_1.safetensors")
    before = sorted(tmp_path.iterdir())
    for backbone, branch, hint in (
        (clip_file, None, "takes other inputs"),
        ("v1_1.safetensors", None, "use the first version, Wan2.1-Fun-1.3B-Control"),
        (wan_file, wan_file, "without a CLIP branch"),
        (wan_file, "small.safetensors", "does not fit the backbone"),
        ("holed.safetensors", None, "blocks.1.norm3.weight"),
        ("spoilt.safetensors", None, "NaN"),
        ("more.safetensors", None, "1 unknown: more.weight"),
        (tiny_folder / "transformer.safetensors", None, "whole already"),
        (tiny_folder / "vae.safetensors", None, "a wan-vae file; a transformer of Wan"),
        ("gone.safetensors", None, "does not exist"),
    ):
        words = [
            "init",
            "--backbone",
            backbone,
            *(["--clip-branch", branch] if branch else []),
            "--out",
            "o.safetensors",
        ]
        assert cli.main([str(word) for word in words]) == 2, hint
        assert hint in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before
    assert cli.main(["init", "--condition", "--backbone", str(control_file), "--out", "o.safetensors"]) == 2
    assert "has condition channels; leave --condition out" in capsys.readouterr().err
    for out, hint in (("o.pth", "ends in .safetensors"), ("no/o.safetensors", "no folder"), (wan_file, "overwrite")):
        assert cli.main(["init", "--backbone", str(wan_file), "--out", str(out)]) == 2
        assert hint in capsys.readouterr().err


def private_memory() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status")
    line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon")), None)
    return 1024 * int(line.split()[1]) if line else 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory through /proc")
def test_the_memory_is_that_of_the_largest_tensor(wan_state, tmp_path):
    """40 MB go through in less than 8 MB; at 1.3B (largest tensor 55 MB) this is what keeps it below 256 MB."""
    save_file(
        {name: value.bfloat16() for name, value in wan_state(ffn=2048, layers=12).items()}, tmp_path / "in.safetensors"
    )
    write_starting_checkpoint(tmp_path / "in.safetensors", tmp_path / "warm.safetensors")
    start, peak = private_memory(), 0

    def watch(done, total):
        nonlocal peak
        peak = max(peak, private_memory() - start)

    write_starting_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", progress=watch)
    assert (tmp_path / "out.safetensors").stat().st_size > 38_000_000
    assert peak < 8_000_000
