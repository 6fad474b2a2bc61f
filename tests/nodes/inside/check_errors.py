"""What goes wrong is told in the artist's words, before the run where it can be, and leaves nothing broken."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import folder_paths
import stack
import torch
from graph import Session, call, node, pack
from stack import applied, ksampler, miniature
from torch.nn import Linear


def refusal(action) -> str:
    """The words of an error of ours; anything else is a failure."""
    errors = pack("contextanyone_core.errors").ContextAnyoneError
    try:
        action()
    except errors as error:
        return str(error)
    raise AssertionError("was not refused")


def prompt(**changed):
    """A graph of the miniature in API form, ContextAnyone Sampler's inputs changed."""
    sampler = {
        "model": ["1", 0], "clip": ["1", 1], "reference": ["3", 0], "first": stack.FIRST, "later": stack.LATER,
        "steps": 2, "seed": 7, "negative": "", "guidance": "cfg", "guidance_scale": 0.0, "reference_scale": 0.0,
        "emphasis": 1.0, "sampler_name": "euler", "shift": 0.0, "gap": 0.0,
    }  # fmt: skip
    return {
        "1": {"class_type": "ContextAnyoneMiniatureLoader", "inputs": {}},
        "2": {"class_type": "ContextAnyoneExamplePicture", "inputs": {"picture": stack.PICTURE}},
        "3": {
            "class_type": "ContextAnyoneReference",
            "inputs": {"image": ["2", 0], "vae": ["1", 2], "clip_vision": ["1", 3]},
        },
        "4": {"class_type": "ContextAnyoneSampler", "inputs": sampler | stack.SIZE | changed},
    }


def check_sizes_and_prompts_are_refused_before_the_run():
    wrong = {
        "length is 80; Wan needs 4k + 1 frames, such as 77 or 81": {"length": 80},
        "width is 100; it must be a multiple of 16": {"width": 100},
        "height is 50; it must be a multiple of 16": {"height": 50},
        "The prompt is empty": {"first": " ", "later": ""},
    }
    for words, changed in wrong.items():
        run = Session().run(prompt(**changed), keep={"latent": ("4", 0)})
        assert run.node_errors, changed
        assert words in run.problem, run.problem
        assert run.executed == []


def check_every_node_with_a_size_or_a_prompt_asks_before_the_run():
    apply, text = node("ContextAnyoneApply"), node("ContextAnyonePrompt")
    assert "4k + 1" in apply.validate_inputs(width=64, height=64, length=8)
    assert apply.validate_inputs(width=64, height=64, length=9) is True
    assert apply.validate_inputs(width=None, height=None, length=None) is True, "linked values are not known yet"
    assert "empty" in text.validate_inputs(first="", later="")
    assert text.validate_inputs(first=None, later="") is True


def check_an_empty_prompt_over_a_link_is_refused_in_the_run():
    graph = prompt(first=["5", 0], later="")
    graph["5"] = {"class_type": "PrimitiveString", "inputs": {"value": "  "}}
    run = Session().run(graph, keep={"latent": ("4", 0)})
    assert "The prompt is empty" in run.problem


def check_sizes_over_a_link_are_refused_in_the_run():
    wrong = {"width": (70, "width is 70; it must be a multiple of 16"), "length": (8, "4k + 1 frames, such as 5 or 9")}
    for name, (value, words) in (wrong | {"height": (0, "height is 0; it must be a whole number")}).items():
        graph = prompt(**{name: ["5", 0]})
        graph["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": value}}
        run = Session().run(graph, keep={"latent": ("4", 0)})
        assert words in run.problem, run.problem
        assert words in refusal(lambda changed={name: value}: apply(**changed))


def check_a_size_beyond_all_sense_is_refused_before_the_run():
    assert "width is 1600000; it must be at most 16384" in node("ContextAnyoneApply").validate_inputs(width=1_600_000)
    assert "length is 40001; it must be at most 16385" in node("ContextAnyoneApply").validate_inputs(length=40_001)


def check_pictures_without_sense_are_refused():
    _, _, vae, clip_vision = miniature()
    take = pack("nodes._comfy.references").take_pictures
    bad = torch.rand(1, 32, 32, 3)
    bad[0, 0, 0, 0] = torch.nan
    assert "1 x 1 pixels" in refusal(lambda: take(torch.zeros(1, 1, 1, 3), None, vae, clip_vision))
    assert "NaN" in refusal(lambda: take(bad, None, vae, clip_vision))
    assert "mask is empty" in refusal(lambda: take(torch.rand(1, 32, 32, 3), torch.zeros(1, 32, 32), vae, None))
    clear = torch.rand(1, 32, 32, 4)
    clear[..., 3] = 0
    assert "picture is transparent" in refusal(lambda: take(clear, None, vae, None))
    assert "2 masks for 1" in refusal(lambda: take(torch.rand(1, 32, 32, 3), torch.ones(2, 32, 32), vae, None))


def check_a_mask_puts_the_subject_on_white():
    _, _, vae, _ = miniature()
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    (taken,) = pack("nodes._comfy.references").take_pictures(torch.zeros(1, 32, 32, 3), mask, vae, None)
    assert float(taken.image[..., :8, :].min()) == 1.0
    assert float(taken.image[..., 8:24, 8:24].max()) == -1.0
    for other in (mask[0], mask[None]):  # as some packs give it
        (same,) = pack("nodes._comfy.references").take_pictures(torch.zeros(1, 32, 32, 3), other, vae, None)
        assert torch.equal(same.image, taken.image)


def with_text(width: int, rows: int = 1):
    values = torch.zeros(1, 512, width)
    values[:, :rows] = 1
    return [[values, {}]]


def apply(**changed):
    given = {"model": miniature()[0], "positive": with_text(128), "negative": with_text(128), "reference": ()}
    return call("ContextAnyoneApply", **given | stack.SIZE | {"batch_size": 1, "emphasis": 1.0, "gap": 0.0} | changed)


def check_another_text_encoder_is_named():
    words = refusal(lambda: apply(positive=with_text(4096)))
    assert "gives 4096 channels, the model wants 128" in words


def check_a_prompt_that_is_too_long_says_by_how_much():
    assert "130 tokens, 2 more than the 128" in refusal(lambda: apply(positive=with_text(128, rows=130)))


def check_another_vae_is_named():
    class ImageVae:
        def encode(self, pixels):
            return torch.zeros(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8)

    picture = pack("nodes._comfy.references").ReferencePicture(torch.zeros(1, 3, 32, 32), ImageVae(), None)
    words = refusal(lambda: apply(reference=(picture,)))
    assert "This VAE makes latents of shape (1, 4, 6, 8)" in words
    assert "wan_2.1_vae" in words


def check_another_clip_vision_is_named_and_a_missing_one_too():
    kind, vae = pack("nodes._comfy.references").ReferencePicture, miniature()[2]
    image = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        words = refusal(lambda: apply(reference=(kind(image, vae, torch.zeros(1, 5, 1280)),)))
        assert "gives 1280 channels, the model wants 128" in words
        assert "connect clip_vision" in refusal(lambda: apply(reference=(kind(image, vae, None),)))


def check_another_model_is_named():
    class Other:
        model = Linear(1, 1)

    assert "This MODEL is a Linear" in refusal(lambda: apply(model=Other()))


def in_models(tmp_name: str, write) -> str:
    """Put a file into a folder that ComfyUI takes for models/diffusion_models; gives its name there."""
    folder = Path(tempfile.mkdtemp())
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    write(folder / tmp_name)
    return tmp_name


def load(name: str):
    return call("ContextAnyoneLoader", model_name=name, weight_dtype="default")


def check_files_of_other_kinds_are_refused_by_name():
    shipped = pack("nodes._comfy.miniature")._WEIGHTS
    for part, words in (("vae", "Load VAE"), ("text_encoder", "Load CLIP"), ("image_encoder", "Load CLIP Vision")):
        name = in_models(
            f"{part}.safetensors", lambda path, part=part: shutil.copy(shipped / f"{part}.safetensors", path)
        )
        problem = refusal(lambda name=name: load(name))
        assert words in problem, problem
        assert "\n" not in problem
    assert "empty" in refusal(lambda: load(in_models("nothing.safetensors", lambda path: path.touch())))
    pickle = in_models("evil.pth", lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n."))
    assert "\n" not in refusal(lambda: load(pickle))
    gone = in_models("gone.safetensors", lambda path: path.touch())
    Path(folder_paths.get_full_path("diffusion_models", gone)).unlink()
    assert "no longer in models/diffusion_models" in refusal(lambda: load(gone))


def check_a_file_with_nan_is_refused():
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source = pack("nodes._comfy.miniature")._WEIGHTS / "transformer.safetensors"

    def write(path):
        tensors = load_file(source)
        tensors["blocks.0.ffn.0.bias"][3] = torch.nan
        with safe_open(source, "pt") as file:
            save_file(tensors, path, file.metadata())

    assert "NaN" in refusal(lambda: load(in_models("broken.safetensors", write)))


def check_a_full_graph_runs_after_every_error():
    session = Session()
    assert not session.run(prompt(later="word " * 200), keep={"latent": ("4", 0)}).ok
    run = session.run(prompt(), keep={"latent": ("4", 0)})
    assert run.ok, run.problem
    assert torch.equal(
        run.values["latent"]["samples"], Session().run(prompt(), keep={"latent": ("4", 0)}).values["latent"]["samples"]
    )


def check_only_what_changed_runs_again():
    session = Session()
    session.run(prompt(), keep={"latent": ("4", 0)})
    again = session.run(prompt(seed=8), keep={"latent": ("4", 0)})
    assert again.executed == ["4"], again.executed
    assert set(again.cached) >= {"1", "2", "3"}


def check_stop_ends_the_run_and_the_next_one_works():
    session = Session()
    stopped = session.run(prompt(steps=8), keep={"latent": ("4", 0)}, interrupt_at=3)
    assert stopped.interrupted
    assert session.run(prompt(), keep={"latent": ("4", 0)}).ok
    assert bool(torch.isfinite(ksampler(*applied())).all())


def check_an_old_comfyui_is_told_which_one_is_needed():
    import asyncio
    from unittest import mock

    words = ""
    with mock.patch("comfyui_version.__version__", "0.8.0"):
        try:
            asyncio.run(pack("nodes").comfy_entrypoint())
        except RuntimeError as error:
            words = str(error)
    assert "needs at least ComfyUI 0.24.0; this is 0.8.0" in words


def check_an_old_python_is_told_which_one_is_needed():
    import asyncio
    from unittest import mock

    words = ""
    with mock.patch("sys.version_info", (3, 10, 13, "final", 0)):
        try:
            asyncio.run(pack("nodes").comfy_entrypoint())
        except RuntimeError as error:
            words = str(error)
    assert "needs at least Python 3.11; this ComfyUI runs on 3.10" in words


def check_a_picture_from_another_world_is_told_of():
    from unittest import mock

    familiarity = pack("nodes._comfy.familiarity")
    _, _, vae, _ = miniature()
    torch.manual_seed(0)
    noise = torch.rand(1, 64, 64, 3)
    with torch.inference_mode(), mock.patch.object(familiarity, "say") as said:
        strange = pack("nodes._comfy.references").take_pictures(noise, None, vae, None)
        familiarity.say_how_familiar("7", stack.references(stack.PICTURE))
        assert "is of the miniature's world" in said.call_args.args[1], "in place of an earlier warning, which stays"
        familiarity.say_how_familiar("7", (*stack.references(stack.PICTURE), *strange))
    assert said.call_args.args[0] == "7"
    assert said.call_args.args[1].startswith("Picture 2 is far from")
