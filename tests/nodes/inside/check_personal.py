"""Load Personal Model: the person's LoRA, trigger and body, and regions as the headless pipeline has them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
from pathlib import Path
from unittest import mock

import comfy.sd
import comfy.utils
import folder_paths
import graph
import stack
import torch
from check_fun_control import weights as fun_control_weights
from check_pose import POSE_WIDGETS, keypoints
from check_trained_lora import place
from graph import Session, call, node, pack
from refusals import refusal
from safetensors.torch import save_file
from stack import ksampler, largest, miniature

TOLERANCE = 1e-4
LATER = "The zuv person is waving (at the beach:1.5), zuv person."


def headless(name: str) -> torch.Tensor:
    return comfy.utils.load_torch_file(str(graph.DATA / "personal.safetensors"))[name]


def off(latents: torch.Tensor, name: str) -> float:
    return largest((latents - headless(name)) / headless("std"))


def load(file: str = "zuv.safetensors", strength: float = 1.0, model=None):
    given = miniature()[0] if model is None else model
    return call("ContextAnyonePersonalLoader", model=given, file=place("loras", file), strength=strength)


def pose(length: int = 5, **changed):
    return call("ContextAnyonePose", keypoints=keypoints(length=length), **POSE_WIDGETS | changed)[0]


def applied(model, **changed):
    given = {"pictures": (), "later": LATER, "vae": miniature()[2]} | changed
    return stack.applied(model, **given)


def check_regions_are_those_of_the_headless_pipeline():
    model = load(strength=0.0)[0]
    latents = ksampler(*applied(model, pose=pose()), cfg=model.model.config.cfg_scale)
    assert off(latents, "regions") < TOLERANCE
    assert off(latents, "posed") > 0.01, "the regions change nothing"


def check_only_the_prompts_pass_carries_them_in_plain_values():
    _, positive, negative, _ = applied(load()[0], pose=pose())
    extras = positive[0][1]
    assert extras["contextanyone_named"].tolist() == headless("rows").tolist()
    assert torch.equal(extras["contextanyone_person"], headless("hull"))
    assert all(type(value) in (torch.Tensor, int, float, str, type(None)) for value in extras.values())
    assert not {"contextanyone_named", "contextanyone_person"} & negative[0][1].keys()
    assert "contextanyone_pose" in negative[0][1]


def check_dual_guidance_has_them_too():
    model, positive, negative, latent = applied(load(strength=0.0)[0], pose=pose())
    (noise,), (sampler,) = call("RandomNoise", noise_seed=7), call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
    scales = {"guidance_scale": 3.0, "reference_scale": 2.0}
    (guider,) = call("ContextAnyoneGuider", model=model, positive=positive, negative=negative, **scales)
    given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    assert off(call("SamplerCustomAdvanced", **given)[0]["samples"], "dual") < TOLERANCE


def quick(model, positive, negative, latent) -> torch.Tensor:
    """One step of the prompt's pass alone."""
    return ksampler(model, positive, negative, latent, steps=1, cfg=1.0)


def check_the_lora_is_what_the_stock_loader_makes_of_the_file():
    ours, name = load()[0], place("loras", "zuv.safetensors")
    (stock,) = call("LoraLoaderModelOnly", model=miniature()[0], lora_name=name, strength_model=1.0)
    one, other = (quick(*applied(model)) for model in (ours, stock))  # no pose: no regions
    assert torch.equal(one, other)
    assert largest(one - quick(*applied(miniature()[0]))) > 0.1
    again = quick(*applied(call("LoraLoaderModelOnly", model=ours, lora_name=name, strength_model=-1.0)[0]))
    assert largest(again - quick(*applied(miniature()[0]))) < 0.05, "a clone keeps the person, and the updates add"


def check_a_strength_and_a_pose_that_does_not_act_switch_the_regions_off():
    model, stock = load(strength=0.0)[0], miniature()[0]
    for changed in ({"pose_strength": 0.0}, {"pose": pose(pose_start=1.0)}):
        both = (quick(*applied(one, **{"pose": pose()} | changed)) for one in (model, stock))
        assert torch.equal(*both), changed


def check_a_context_window_has_the_person_of_its_frames():
    model, positive, negative, latent = applied(load(strength=0.0)[0], length=17, pose=pose(17))
    person, posed = positive[0][1]["contextanyone_person"], positive[0][1]["contextanyone_pose"]
    posed = model.model.process_latent_in(posed)
    (windowed,) = call(
        "ContextWindowsManual", model=model, context_length=3, context_overlap=1, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False,
    )  # fmt: skip
    seen, network = [], pack("nodes._comfy.network").ContextAnyoneNetwork
    inner = network._velocity

    def note(self, x, *arguments, **given):
        seen.append((given["person"].clone(), given["pose"].clone()))
        return inner(self, x, *arguments, **given)

    with mock.patch.object(network, "_velocity", note):
        quick(windowed, positive, negative, latent)
    windows = set()
    for own_person, own_pose in seen:
        gaps = (own_pose[0, :, :, None] - posed[0, :, None]).abs().amax((0, 3, 4))  # frame by frame
        frames = gaps.argmin(1).tolist()
        assert float(gaps.min(1).values.max()) < 1e-4
        assert torch.equal(own_person, person[:, :, frames])
        windows.add(tuple(frames))
    assert len(windows) == 2, windows


def check_a_batch_and_a_part_of_the_picture_have_theirs():
    graphs = applied(load(strength=0.0)[0], pose=pose(), batch_size=2)
    two, one = quick(*graphs), quick(*applied(load(strength=0.0)[0], pose=pose()))
    assert largest(two[:1] - one) < TOLERANCE
    model, positive, negative, latent = applied(load(strength=0.0)[0], pose=pose())
    (part,) = call("ConditioningSetArea", conditioning=positive, width=32, height=48, x=32, y=0, strength=1.0)
    for _, extras in part:  # a video's area has frames too
        extras["area"] = (2, 6, 4, 0, 0, 4)
    (mixed,) = call("ConditioningCombine", conditioning_1=positive, conditioning_2=part)
    assert bool(torch.isfinite(quick(model, mixed, negative, latent)).all())


def notes_of(**changed) -> list[str]:
    told = mock.patch.object(pack("nodes.apply"), "reference_note", lambda *words: list(filter(None, words[3:])))
    with torch.inference_mode(), told:
        found = node("ContextAnyoneApply").execute(**_apply_inputs(**changed))
    return found.ui


def _apply_inputs(positive=None, later=LATER, **changed):
    own, minus = call("ContextAnyonePrompt", clip=miniature()[1], first=stack.FIRST, later=later, negative="")
    settings = {**stack.SIZE, "batch_size": 1, "emphasis": 1.0, "gap": 0.0, "vae": miniature()[2]} | changed
    return {"model": load()[0], "positive": positive or own, "negative": minus, **settings}


def check_a_prompt_without_the_name_says_so():
    assert notes_of(pose=pose()) == []
    (told,) = notes_of(later="The person is waving.", pose=pose())
    assert told.startswith('The prompt does not say "zuv person"'), told
    (plain,) = call("CLIPTextEncode", clip=miniature()[1], text="A zuv person.")
    (told,) = notes_of(positive=plain, pose=pose())
    assert "does not come from ContextAnyone Prompt" in told


def check_the_simple_sampler_is_the_same():
    own = {"guidance": "cfg", "guidance_scale": 1.0, "reference_scale": 0.0, "emphasis": 1.0, "shift": 0.0, "gap": 0.0}
    settings = own | {"negative": "", "sampler_name": "euler", "steps": 1, "seed": 7} | stack.SIZE
    model, clip, vae = load()[0], miniature()[1], miniature()[2]
    given = {"model": model, "clip": clip, "pose": pose(), "vae": vae, "first": stack.FIRST, "later": LATER}
    found = call("ContextAnyoneSampler", **given | settings)[0]["samples"]
    assert largest(found - quick(*applied(model, pose=pose()))) < TOLERANCE


def check_trigger_and_body_are_for_the_other_nodes():
    _, trigger, body = load()
    assert trigger == "zuv person"
    measured = pack("contextanyone_core.pose.body")
    given = pack("nodes._comfy.poses").given_body(body, "none").lengths
    wanted = measured.read_personal_body(graph.DATA / "zuv.safetensors").lengths
    ratios = (given / wanted)[wanted > 0]
    assert (given > 0).tolist() == (wanted > 0).tolist()
    assert abs(ratios / ratios[0] - 1).max() < 1e-4
    fitted = pose(body=body).pose.poses
    direct = pose(body=keypoints("walk", 81)).pose.poses
    assert abs(fitted.body - direct.body).max() < 0.05
    assert load("other_base.safetensors")[2] is None
    assert pose(body=None).pose.num_frames == 5


def check_what_does_not_fit_says_what_to_do():
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.safetensors").write_bytes(b"no weights at all")
    stock = type("ModelPatcher", (), {"model": object()})()
    wrong = {
        "no_person.safetensors is no personal file": {"file": place("loras", "no_person.safetensors")},
        "other_size.safetensors was trained on a base of another size": {
            "file": place("loras", "other_size.safetensors")
        },
        "broken.safetensors is no safetensors file": {"file": "broken.safetensors"},
        "gone.safetensors is no longer in models/loras": {"file": "gone.safetensors"},
        "model is null": {"model": None},
        "need one from Load ContextAnyone": {"model": stock},
        "strength is nan": {"strength": float("nan")},
    }
    own = {"model": miniature()[0], "file": place("loras", "zuv.safetensors"), "strength": 1.0}
    for words, changed in wrong.items():
        problem = refusal(lambda changed=changed: call("ContextAnyonePersonalLoader", **own | changed))
        assert words in problem, (words, problem)
        assert "\n" not in problem
        assert str(folder) not in problem
    kind = node("ContextAnyonePersonalLoader")
    assert "strength is 11.0" in refusal(lambda: kind.validate_inputs(strength=11.0))


def loader_graph(file: str) -> dict:
    return {
        "1": {"class_type": "ContextAnyoneMiniatureLoader", "inputs": {}},
        "2": {
            "class_type": "ContextAnyonePersonalLoader",
            "inputs": {"model": ["1", 0], "file": file, "strength": 1.0},
        },
    }


def check_the_note_shows_the_person_and_a_file_that_was_trained_again_is_loaded_again():
    file = place("loras", "zuv.safetensors")
    session = Session()
    run = session.run(loader_graph(file), keep={"trigger": ("2", 1)})
    assert run.ok, run.problem
    assert run.values["trigger"] == "zuv person"
    said = run.told("2")
    assert "contextanyone_note" not in said
    shown = " ".join(said["contextanyone_said"])
    for words in ('write "zuv person" in the prompt', "Name: zuv. Class: person.", "Bone lengths", "knee"):
        assert words in shown, (words, shown)
    again = session.run(loader_graph(file), keep={"trigger": ("2", 1)})
    assert "2" in again.cached
    assert again.told("2")["contextanyone_said"] == said["contextanyone_said"]
    path = Path(folder_paths.get_full_path("loras", file))
    shutil.copy(graph.DATA / "other_base.safetensors", path)
    changed = session.run(loader_graph(file), keep={"trigger": ("2", 1)})
    assert "2" in changed.executed
    assert "trained on another base" in " ".join(changed.told("2")["contextanyone_note"])
    assert "not in the file" in " ".join(changed.told("2")["contextanyone_said"])


@contextlib.contextmanager
def log():
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


@functools.cache
def published(kind: str):
    """A small base of published names by ComfyUI's own loader, and the updates of a personal file for it."""
    own = dict(fun_control_weights())
    if kind == "t2v":
        own = {name: tensor for name, tensor in own.items() if "_img" not in name and "img_emb" not in name}
        own["patch_embedding.weight"] = own["patch_embedding.weight"][:, :16].clone()
    sizes = {"dim": 256, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 128, "text_len": 512}
    native = comfy.sd.load_diffusion_model_state_dict(
        {name: tensor.clone() for name, tensor in own.items()}, metadata={"config": json.dumps({"transformer": sizes})}
    )
    assert type(native.model).__name__ == "WAN21"
    updates = {}
    for name, weight in own.items():
        module = name.removesuffix(".weight")
        layers = ".cross_attn." in name and module.rpartition(".")[2] in "qkvo"
        if module != name and (layers or name.startswith("text_embedding.")):
            key = f"diffusion_model.{module}"
            updates[f"{key}.lora_A.weight"] = torch.randn(4, weight.shape[1])
            updates[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], 4)
            updates[f"{key}.alpha"] = torch.tensor(4.0)
    return own, native, updates


def check_stock_loaders_use_every_key_on_bases_of_published_names():
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("t2v", "control"):
        _, native, updates = published(kind)
        save_file(updates, folder / f"{kind}.safetensors")
        with log() as lines:
            (patched,) = call("LoraLoaderModelOnly", model=native, lora_name=f"{kind}.safetensors", strength_model=1.0)
        assert not [line for line in lines if "not loaded" in line.lower()], lines
        assert len(patched.patches) == len(updates) // 3 == 8 + 2


def check_stock_loaders_use_every_key_of_the_shipped_examples():
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    examples = sorted(pack("nodes._comfy.personal_files")._EXAMPLES.glob("*.safetensors"))
    assert examples
    for path in examples:
        shutil.copy(path, folder / f"stock_{path.name}")
        keys = comfy.utils.load_torch_file(str(path))
        assert any(".text_embedding." in key for key in keys)
        with log() as lines:
            (patched,) = call(
                "LoraLoaderModelOnly", model=miniature()[0], lora_name=f"stock_{path.name}", strength_model=1.0
            )
        assert not [line for line in lines if "not loaded" in line.lower()], lines
        assert len(patched.patches) == len(keys) // 3


def check_the_shipped_examples_are_listed_and_are_of_this_base():
    for path in sorted(pack("nodes._comfy.personal_files")._EXAMPLES.glob("*.safetensors")):
        graph_of = loader_graph(path.name)
        run = Session().run(graph_of, keep={"trigger": ("2", 1)})
        assert run.ok, run.problem
        assert run.values["trigger"] == "zuv person"
        assert "contextanyone_note" not in run.told("2"), "the file was trained on another base"


def check_our_loader_takes_a_fun_control_base():
    own, _, updates = published("control")
    folder = next(path for path in map(Path, folder_paths.get_folder_paths("diffusion_models")) if path.is_dir())
    save_file(own, folder / "small_control.safetensors")
    base = call("ContextAnyoneLoader", model_name="small_control.safetensors", weight_dtype="default")[0]
    digest = pack("contextanyone_core.weights.file_hash").sha256_of(folder / "small_control.safetensors")
    person = pack("contextanyone_core.weights.personal_file").PersonalFile("zuv", "woman", "A zuv woman", digest)
    loras = Path(folder_paths.get_folder_paths("loras")[0])
    save_file(updates, loras / "control_person.safetensors", person.metadata())
    with log() as lines:
        given = {"model": base, "file": "control_person.safetensors", "strength": 1.0}
        found = node("ContextAnyonePersonalLoader").execute(**given)
    assert found.args[1] == "zuv woman"
    assert "contextanyone_note" not in found.ui
    assert not [line for line in lines if "not loaded" in line.lower()], lines
    assert len(found.args[0].patches) == 8 + 2
