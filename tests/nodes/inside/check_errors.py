"""What goes wrong is told in the artist's words, before the run where it can be, and leaves nothing broken."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import folder_paths
import numpy as np
import stack
import torch
from graph import Session, call, node, pack
from PIL import Image
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
        "width is 100; it must be a multiple of 16, such as 96 or 112": {"width": 100},
        "height is 50; it must be a multiple of 16, such as 48 or 64": {"height": 50},
        "The prompt is empty": {"first": " ", "later": ""},
    }
    for words, changed in wrong.items():
        assert words in refused_once(prompt(**changed))


def refused_once(graph) -> str:
    """The one message with which a graph is refused before the run, at node 4."""
    run = Session().run(graph, keep={"latent": ("4", 0)})
    assert list(run.node_errors) == ["4"], run.node_errors
    assert len(run.node_errors["4"]["errors"]) == 1, run.problem
    assert run.executed == []
    return run.problem


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


def check_what_is_no_picture_says_what_to_do():
    take = pack("nodes._comfy.references").take_pictures
    vae = miniature()[2]
    wrong = {
        "image is an empty batch": torch.rand(0, 32, 32, 3),
        "image has 1 channel": torch.rand(1, 32, 32, 1),
        "image has 2 channels": torch.rand(1, 32, 32, 2),
        "image has shape (32, 32, 3)": torch.rand(32, 32, 3),
        "image holds torch.uint8": (torch.rand(1, 32, 32, 3) * 255).byte(),
        "from 0 to 255": torch.linspace(0, 255, 32 * 32 * 3).view(1, 32, 32, 3),
        "image is null; connect Load Image": None,
    }
    for words, image in wrong.items():
        assert words in refusal(lambda image=image: take(image, None, vae, None))
    half = torch.rand(1, 32, 32, 3).half()
    assert len(take(half, None, vae, None)) == 1


def check_the_mask_of_an_opaque_picture_says_what_to_do():
    """Load Image gives 64 x 64 zeros for a picture without transparency."""
    take = pack("nodes._comfy.references").take_pictures
    words = refusal(lambda: take(torch.rand(1, 96, 32, 3), torch.zeros(1, 64, 64), miniature()[2], None))
    assert "The mask is empty" in words
    assert "disconnect mask" in words
    assert "1 masks" not in words


def check_null_inputs_are_named():
    own, _, vae, _ = miniature()
    assert "reference is null; connect ContextAnyone Reference" in refusal(lambda: apply(reference=None))
    assert "reference is a list" in refusal(lambda: apply(reference=[1]))
    for name in ("model", "positive", "negative"):
        assert f"{name} is null; connect" in refusal(lambda name=name: apply(**{name: None}))
    assert "positive is an empty CONDITIONING" in refusal(lambda: apply(positive=[]))
    take = pack("nodes._comfy.references").take_pictures
    assert "vae is null; connect Load VAE" in refusal(lambda: take(torch.rand(1, 32, 32, 3), None, None, None))
    texts = {"first": "A person.", "later": "", "negative": ""}
    assert "clip is null; connect Load CLIP" in refusal(lambda: call("ContextAnyonePrompt", clip=None, **texts))
    run = Session().run(prompt(reference=None), keep={"latent": ("4", 0)})
    assert run.problem.startswith("reference is null"), run.problem
    assert run.error["exception_type"] == "contextanyone_core.errors.InputError", "no path of the server's folders"
    picture = call("ContextAnyoneExamplePicture", picture=stack.PICTURE)[0]
    given = {"image": picture, "vae": vae, "clip_vision": None, "mask": None, "reference": None}
    assert "reference is null" in refusal(lambda: call("ContextAnyoneReference", **given))
    given = {"positive": with_text(128), "negative": with_text(128), "guidance_scale": 1.0, "reference_scale": 1.0}
    assert "model is null" in refusal(lambda: call("ContextAnyoneGuider", model=None, **given))
    given |= {"model": own, "negative": None}
    assert "negative is null" in refusal(lambda: call("ContextAnyoneGuider", **given))


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
    words = refusal(lambda: apply(positive=with_text(128, rows=130)))
    assert "The prompt at positive" in words
    assert "130 tokens, 2 more than the 128" in words
    words = refusal(lambda: apply(negative=with_text(128, rows=131)))
    assert "The negative prompt at negative" in words
    assert "131 tokens, 3 more than the 128" in words
    long = {"contextanyone_first_prompt": with_text(128, rows=132)[0][0]}
    (picture,) = stack.references(stack.PICTURE)
    with torch.inference_mode():
        words = refusal(lambda: apply(positive=[[with_text(128)[0][0], long]], reference=(picture,)))
    assert words.startswith("The first-frame prompt")


def check_a_long_negative_is_blamed_by_every_node():
    run = Session().run(prompt(negative="blurry " * 200), keep={"latent": ("4", 0)})
    assert run.problem.startswith("The negative prompt (negative of ContextAnyone Sampler) has"), run.problem
    own, positive, _, latent = applied()
    with torch.inference_mode():
        words = refusal(lambda: ksampler(own, positive, with_text(128, rows=130), latent))
    assert words.startswith("The negative prompt has 130 tokens")


def check_padding_between_joined_prompts_is_no_prompt():
    """ConditioningConcat puts a prompt's 512 rows behind another's."""
    one, two = with_text(128, rows=20)[0][0], with_text(128, rows=30)[0][0] * 2
    joined = torch.cat((one, two), 1)
    fitted = pack("contextanyone_core.encoders.reference").fit_text_embeds(joined, miniature()[0].model.config)
    assert torch.equal(fitted[:, :50], torch.cat((one[:, :20], two[:, :30]), 1))
    assert not fitted[:, 50:].any()
    apply(positive=[[joined, {}]])
    longer = torch.cat((with_text(128, rows=100)[0][0], two), 1)
    assert "has 130 tokens, 2 more" in refusal(lambda: apply(positive=[[longer, {}]]))


def check_text_is_taken_literally():
    """Weights and embeddings of ComfyUI's prompts are characters like any others."""
    clip = miniature()[1]
    encode = pack("nodes._comfy.references")._encode_text
    text = "a (person:1.3) embedding:foo waving \\(here\\)"
    name = clip.tokenizer.clip
    plain = getattr(clip.tokenizer, name).tokenizer(text)["input_ids"]
    count = int(encode(clip, text)[0][0].any(-1).sum())
    assert count == len(plain), (count, plain)
    getattr(clip.tokenizer, name).embedding_directory = tempfile.mkdtemp()
    try:
        seen = []
        with mock.patch.object(type(clip), "encode_from_tokens_scheduled", lambda _, tokens: seen.append(tokens)):
            encode(clip, text)
        ((tokens,),) = (found.values() for found in seen)
        assert [token for token, _ in tokens[0]][: len(plain)] == plain
    finally:
        getattr(clip.tokenizer, name).embedding_directory = None


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


def check_pictures_are_counted_where_there_are_several():
    notes, own = pack("nodes._comfy.notes"), miniature()[0]
    torch.manual_seed(0)
    with torch.inference_mode():
        strange = pack("nodes._comfy.references").take_pictures(torch.rand(1, 64, 64, 3), None, miniature()[2], None)
        several = (*stack.references(stack.PICTURE), *strange)
        assert notes.note_on(own, several[:1], "Apply") is None
        assert notes.note_on(own, (), "Apply") is None
        (words,) = notes.note_on(own, several, "Apply")[notes.NOTE]
    assert words.startswith("Apply: Picture 2 is far from")
