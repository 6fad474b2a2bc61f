"""What goes wrong is told in the artist's words, before the run where it can be, and leaves nothing broken."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import folder_paths
import numpy as np
import stack
import torch
from graph import Session, call, node, pack
from PIL import Image
from refusals import apply, in_models, prompt, refusal, refused_once
from stack import applied, ksampler, miniature


def check_sizes_and_prompts_are_refused_before_the_run():
    wrong = {
        "length is 80; Wan needs 4k + 1 frames, such as 77 or 81": {"length": 80},
        "width is 100; it must be a multiple of 16, such as 96 or 112": {"width": 100},
        "height is 50; it must be a multiple of 16, such as 48 or 64": {"height": 50},
        "The prompt is empty": {"first": " ", "later": ""},
    }
    for words, changed in wrong.items():
        assert words in refused_once(prompt(**changed))


def check_numbers_that_are_none_are_refused_before_the_run():
    for name in ("emphasis", "gap", "guidance_scale", "reference_scale", "shift"):
        for value in (math.nan, math.inf, -math.inf, -1.0, 1e9):
            assert f"{name} is {value}; it must be" in refused_once(prompt(**{name: value})), (name, value)
    for name, value in (("steps", 0), ("seed", -1), ("steps", 10**6), ("sampler_name", "eular"), ("guidance", "both")):
        assert f"{name} is {value!r}" in refused_once(prompt(**{name: value}))
    guider, apply = node("ContextAnyoneGuider"), node("ContextAnyoneApply")
    assert "guidance_scale is nan" in refusal(lambda: guider.validate_inputs(guidance_scale=math.nan))
    assert "emphasis is nan" in refusal(lambda: apply.validate_inputs(emphasis=math.nan))
    assert "gap is inf" in refusal(lambda: apply.validate_inputs(gap=math.inf))


def check_an_interval_that_is_none_is_refused_before_the_run():
    assert "guidance_low is nan" in refused_once(prompt(guidance_low=math.nan))
    assert "guidance_high is 2.0; it must be at most 1" in refused_once(prompt(guidance_high=2.0))
    assert "interval" in refused_once(prompt(guidance_low=0.8, guidance_high=0.2))
    guider = node("ContextAnyoneGuider")
    assert "interval" in refusal(lambda: guider.validate_inputs(guidance_low=0.8, guidance_high=0.2))


def check_numbers_over_a_link_are_refused_in_the_run():
    for name, value in (("emphasis", math.nan), ("gap", math.nan), ("batch_size", 0), ("emphasis", 40.0)):
        assert f"{name} is {value}" in refusal(lambda changed={name: value}: apply(**changed))
    graph = prompt(steps=["5", 0])
    graph["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": 0}}
    run = Session().run(graph, keep={"latent": ("4", 0)})
    assert run.problem.startswith("steps is 0; it must be a whole number of at least 1"), run.problem
    model, positive, negative, _ = applied()
    for scales in ({"guidance_scale": math.nan}, {"reference_scale": -1.0}):
        given = {"guidance_scale": 1.0, "reference_scale": 1.0} | scales
        words = refusal(
            lambda given=given: call("ContextAnyoneGuider", model=model, positive=positive, negative=negative, **given)
        )
        assert f"{next(iter(scales))} is" in words


def check_every_node_with_a_size_or_a_prompt_asks_before_the_run():
    apply, text = node("ContextAnyoneApply"), node("ContextAnyonePrompt")
    assert "4k + 1" in refusal(lambda: apply.validate_inputs(width=64, height=64, length=8))
    assert apply.validate_inputs(width=64, height=64, length=9) is True
    assert apply.validate_inputs(width=None, height=None, length=None) is True, "linked values are not known yet"
    assert "empty" in refusal(lambda: text.validate_inputs(first="", later=""))
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
    apply = node("ContextAnyoneApply")
    words = refusal(lambda: apply.validate_inputs(width=1_600_000))
    assert words == "width is 1600000; it must be at most 16384."
    assert "length is 40001; it must be at most 16385" in refusal(lambda: apply.validate_inputs(length=40_001))


def load(name: str):
    return call("ContextAnyoneLoader", model_name=name, weight_dtype="default")


def check_files_of_other_kinds_are_refused_by_name():
    shipped = pack("contextanyone_core.model_specs").MINIATURE
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


def check_one_shard_says_what_to_do():
    from safetensors.torch import save_file

    tensors = {"head.modulation": torch.zeros(1, 2, 256), "patch_embedding.weight": torch.zeros(256, 16, 1, 2, 2)}
    for index, name in enumerate(tensors, 1):  # the first has what a transformer is known by
        shard = in_models(
            f"diffusion_pytorch_model-0000{index}-of-00002.safetensors",
            lambda path, name=name: save_file({name: tensors[name]}, path),
        )
        problem = refusal(lambda shard=shard: load(shard))
        assert "is one shard of several" in problem, problem
        assert "contextanyone convert" in problem


def check_a_file_with_nan_is_refused():
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source = pack("contextanyone_core.model_specs").MINIATURE / "transformer.safetensors"

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

    words = ""
    with mock.patch("comfyui_version.__version__", "0.8.0"):
        try:
            asyncio.run(pack("nodes").comfy_entrypoint())
        except RuntimeError as error:
            words = str(error)
    assert "needs at least ComfyUI 0.24.0; this is 0.8.0" in words


def check_an_old_python_is_told_which_one_is_needed():
    import asyncio

    words = ""
    with mock.patch("sys.version_info", (3, 10, 13, "final", 0)):
        try:
            asyncio.run(pack("nodes").comfy_entrypoint())
        except RuntimeError as error:
            words = str(error)
    assert "needs at least Python 3.11; this ComfyUI runs on 3.10" in words


def check_a_picture_from_another_world_is_told_of_to_one_client():
    """Only where something is wrong, beside the node's outputs: ComfyUI sends those to whoever queued the prompt."""
    key = pack("nodes._comfy.notes").NOTE
    foreign = prompt()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(Path(folder_paths.get_input_directory()) / "noise.png")
    foreign["2"] = {"class_type": "LoadImage", "inputs": {"image": "noise.png"}}
    session, keep = Session(), {"latent": ("4", 0)}
    fine, strange, again = session.run(prompt(), keep), session.run(foreign, keep), session.run(foreign, keep)
    assert fine.ok, fine.problem
    assert again.executed == [], "cached"
    assert not fine.told("4"), fine.events
    for run in (strange, again):  # a cached node says it again
        (words,) = run.told("4")[key]
        assert words.startswith("ContextAnyone Sampler: The picture is far from the miniature's drawn world"), words
    assert {client for run in (fine, strange, again) for _, _, client in run.events} == {"tests"}


def check_a_video_as_reference_and_a_size_beyond_the_miniature_are_told():
    """Both are what a first try gives: Load Video's frames, and the 832 x 480 that the nodes begin with."""
    notes, own = pack("nodes._comfy.notes"), miniature()[0]
    (picture,) = stack.references(stack.PICTURE)
    with torch.inference_mode():
        assert notes.reference_note(own, (picture,) * 8, "Apply") is None
        (words,) = notes.reference_note(own, (picture,) * 40, "Apply")[notes.NOTE]
    assert words.startswith("Apply: There are 40 reference pictures")
    assert "ImageFromBatch" in words
    assert notes.size_note(own, (128, 128)) == notes.size_note(own, (48, 64)) == ""
    assert "the video is 832 x 480" in notes.size_note(own, (480, 832))
    other = own.clone()
    other.cached_patcher_init = (own.cached_patcher_init[0], (Path("mine.safetensors"), None, "auto"))
    assert notes.size_note(other, (480, 832)) == ""


def check_one_of_two_experts_is_told_without_a_warning():
    """Whoever loads both has done the right thing."""
    notes, load = pack("nodes._comfy.notes"), node("ContextAnyoneLoader").execute
    write = partial(shutil.copy, pack("contextanyone_core.model_specs").MINIATURE / "phantom.safetensors")
    found = load(model_name=in_models("wan2.2_bernini_r_low_noise.safetensors", write)).ui
    assert found.keys() == {notes.SAID}
    (words,) = found[notes.SAID]
    assert "for low noise, half of a model: it is made for the last steps alone" in words
    assert "KSampler (Advanced)" in words
    assert load(model_name=in_models("wan2.1_bernini.safetensors", write)).ui is None


def check_pictures_are_counted_where_there_are_several():
    notes, own = pack("nodes._comfy.notes"), miniature()[0]
    torch.manual_seed(0)
    with torch.inference_mode():
        strange = pack("nodes._comfy.references").take_pictures(torch.rand(1, 64, 64, 3), None, miniature()[2], None)
        several = (*stack.references(stack.PICTURE), *strange)
        assert notes.reference_note(own, several[:1], "Apply") is None
        assert notes.reference_note(own, (), "Apply") is None
        (words,) = notes.reference_note(own, several, "Apply")[notes.NOTE]
    assert words.startswith("Apply: Picture 2 is far from")
