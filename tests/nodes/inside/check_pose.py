"""Poses and a start frame: what the headless pipeline gives, in every branch, batch and context window."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil
from pathlib import Path
from unittest import mock

import comfy.model_base
import comfy.sample
import comfy.utils
import folder_paths
import graph
import numpy as np
import stack
import torch
from graph import Session, call, node, pack
from PIL import Image
from refusals import refusal
from stack import applied, ksampler, largest, miniature
from torch._subclasses.fake_tensor import FakeTensorMode

TOLERANCE = 1e-4
POSE_WIDGETS = {"fit": "auto", "person": 0, "fps": 0.0, "pose_start": 0.0, "pose_end": 1.0, "body_file": "none"}


def headless(name: str) -> torch.Tensor:
    return comfy.utils.load_torch_file(str(graph.DATA / "pose.safetensors"))[name]


def off(latents: torch.Tensor, name: str) -> float:
    """Largest difference from the headless result, over the channels' standard deviation."""
    return largest((latents - headless(name)) / headless("std"))


@functools.cache
def wide():
    """The miniature with random condition channels, loaded by its file."""
    folder = next(path for path in map(Path, folder_paths.get_folder_paths("diffusion_models")) if path.is_dir())
    shutil.copy(graph.DATA / "weights" / "transformer.safetensors", folder / "wide.safetensors")
    return call("ContextAnyoneLoader", model_name="wide.safetensors", weight_dtype="default")[0]


@functools.cache
def narrow():
    """A miniature of ours without condition channels, whatever the shipped one has."""
    from dataclasses import replace

    model = wide().model
    tensors = {name: tensor.clone() for name, tensor in model.diffusion_model.state_dict().items()}
    tensors["patch_embedding.weight"] = tensors["patch_embedding.weight"][:, :16].clone()
    return pack("nodes._comfy.model").native_model(replace(model.config, condition_dim=0), tensors)


def keypoints(name: str = "dance", length: int = 5):
    return call("ContextAnyoneExamplePose", motion=name, length=length)[0]


def pose(**changed):
    given = {"keypoints": keypoints()} if "image" not in changed else {}
    return call("ContextAnyonePose", **given | POSE_WIDGETS | changed)[0]


def start() -> torch.Tensor:
    picture = np.asarray(Image.open(graph.DATA / "start.png").convert("RGB"), np.float32)
    return torch.from_numpy(picture / 255.0)[None]


def check_ksampler_follows_a_pose_as_the_headless_pipeline():
    latents = ksampler(*applied(wide(), pose=pose()))
    assert off(latents, "pose") < TOLERANCE
    assert off(latents, "none") > 0.1, "the pose changes nothing"
    assert off(ksampler(*applied(wide())), "none") < TOLERANCE


def check_a_pose_gets_the_bodys_proportions():
    given = {"keypoints": keypoints(length=81), "body": keypoints("walk", 81)}
    latents = ksampler(*applied(wide(), pose=pose(**given)))
    assert off(latents, "fitted") < TOLERANCE
    assert off(latents, "pose") > 0.01, "the body changes nothing"
    same = ksampler(*applied(wide(), pose=pose(**given, fit="bones")))
    assert torch.equal(latents, same)


def check_a_start_frame_is_followed():
    assert off(ksampler(*applied(wide(), start_frame=start())), "start") < TOLERANCE
    both = ksampler(*applied(wide(), pose=pose(), pose_strength=0.5, start_frame=start()))
    assert off(both, "both") < TOLERANCE


def check_a_start_frame_may_be_on_the_cpu_and_the_video_on_a_card():
    model = miniature()[0].model
    with FakeTensorMode():  # the devices of a GPU machine without one
        video, frame = torch.zeros(1, 16, 2, 4, 4, device="cuda"), torch.ones(1, 16, 2, 4, 4)
        with mock.patch.object(comfy.model_base.BaseModel, "_apply_model", lambda self, x, *_, **__: x):
            assert model._apply_model(video, start=frame).device.type == "cuda"


def check_the_window_is_in_steps():
    latents = ksampler(*applied(wide(), pose=pose(pose_start=0.25, pose_end=0.75)))
    assert off(latents, "window") < TOLERANCE
    assert off(latents, "pose") > 0.01


def check_strength_zero_and_an_empty_window_are_no_pose():
    without = ksampler(*applied(wide()))
    for changed in ({"pose_strength": 0.0}, {"pose": pose(pose_start=1.0)}):
        assert torch.equal(ksampler(*applied(wide(), **{"pose": pose()} | changed)), without), changed


def check_a_sampler_that_looks_twice_in_a_step_keeps_the_window():
    """Heun's second look at a step's end belongs to the next step."""
    seen = []
    network = pack("nodes._comfy.network")
    inner = network.condition_at

    def note(video, share, strength, window):
        seen.append(strength)
        return inner(video, share, strength, window)

    with mock.patch.object(network, "condition_at", note):
        ksampler(*applied(wide(), pose=pose(pose_end=0.5)), sampler_name="heun", cfg=1.0)
    assert seen == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], seen


def check_every_branch_of_dual_guidance_has_them():
    changed = {"negative": "A city.", "emphasis": 0.7, "gap": 5.0, "pose": pose(), "start_frame": start()}
    model, positive, negative, latent = applied(wide(), **changed)
    _, plain = call("ContextAnyonePrompt", clip=miniature()[1], first=stack.FIRST, later="", negative="A city.")
    (noise,), (sampler,) = call("RandomNoise", noise_seed=7), call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
    for other in (negative, plain):  # a negative straight from the prompt's node serves as well
        scales = {"guidance_scale": 3.0, "reference_scale": 2.0}
        (guider,) = call("ContextAnyoneGuider", model=model, positive=positive, negative=other, **scales)
        given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
        assert off(call("SamplerCustomAdvanced", **given)[0]["samples"], "dual") < TOLERANCE


def simple(model=None, **changed):
    own = {"guidance": "cfg", "guidance_scale": 0.0, "reference_scale": 0.0, "emphasis": 1.0, "shift": 0.0, "gap": 0.0}
    settings = own | {"negative": "", "sampler_name": "euler", "steps": 4, "seed": 7} | stack.SIZE | changed
    given = {"clip": miniature()[1], "reference": stack.references(stack.PICTURE)}
    given["model"] = wide() if model is None else model
    return call("ContextAnyoneSampler", first=stack.FIRST, later=stack.LATER, **given | settings)[0]["samples"]


def check_the_simple_sampler_follows_them():
    assert off(simple(pose=pose()), "pose") < TOLERANCE
    assert off(simple(pose=pose(), pose_strength=0.5, start_frame=start()), "both") < TOLERANCE
    scales = {"guidance": "dual", "guidance_scale": 3.0, "reference_scale": 2.0, "emphasis": 0.7, "gap": 5.0}
    assert off(simple(**scales, negative="A city.", pose=pose(), start_frame=start()), "dual") < TOLERANCE


def check_a_drawn_video_is_followed_as_its_keypoints():
    frames = torch.from_numpy(np.load(graph.DATA / "drawn.npy").astype(np.float32) / 255.0)
    assert off(ksampler(*applied(wide(), pose=pose(image=frames))), "pose") < TOLERANCE
    twice = frames.repeat_interleave(2, 0)
    assert off(ksampler(*applied(wide(), pose=pose(image=twice, fps=32.0))), "pose") < TOLERANCE


def check_without_a_reference_the_vae_is_connected():
    plain = ksampler(*applied(wide(), pictures=(), pose=pose(), vae=miniature()[2]))
    assert largest(plain - ksampler(*applied(wide(), pictures=()))) > 0.1
    words = refusal(lambda: applied(wide(), pictures=(), pose=pose()))
    assert "there is none: connect vae" in words, words


def check_a_batch_follows_one_pose():
    two = ksampler(*applied(wide(), pose=pose(), start_frame=start(), batch_size=2))
    one = ksampler(*applied(wide(), pose=pose(), start_frame=start()))
    assert two.shape[0] == 2
    assert largest(two[:1] - one) < TOLERANCE
    assert largest(two[:1] - two[1:]) > 0.01


def check_a_context_window_sees_the_pose_of_its_frames():
    """A window gets the conditions of its own frames; the start frame is the first one's."""
    model, positive, negative, latent = applied(
        wide(),
        pictures=(),
        length=17,
        pose=pose(keypoints=keypoints(length=17)),
        start_frame=start(),
        vae=miniature()[2],
    )
    (windowed,) = call(
        "ContextWindowsManual", model=model, context_length=3, context_overlap=1, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False,
    )  # fmt: skip
    seen = seen_conditions(windowed, positive, negative, latent)
    assert len(seen) == 2, seen
    assert all(video == posed for video, posed, _ in seen), seen
    assert all(started == (0 in video) for video, _, started in seen), seen


def seen_conditions(model, positive, negative, latent) -> set[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """Frames of the video and of its pose that each call of the network has, and whether it has the start frame."""
    whole = model.model.process_latent_in(next(extras for _, extras in positive)["contextanyone_pose"])
    noise = comfy.sample.prepare_noise(latent["samples"], 7)
    seen = set()
    network = pack("nodes._comfy.network").ContextAnyoneNetwork
    inner = network._velocity

    def frames(part, of) -> tuple[int, ...]:
        gaps = (part[0, :, :, None] - of[0, :, None]).abs().amax((0, 3, 4))  # frame by frame
        assert float(gaps.min(1).values.max()) < 1e-4
        return tuple(gaps.argmin(1).tolist())

    def note(self, x, *arguments, **given):
        seen.add((frames(x, noise), frames(given["pose"], whole), bool(given["start"].any())))
        return inner(self, x, *arguments, **given)

    with mock.patch.object(network, "_velocity", note):
        ksampler(model, positive, negative, latent, steps=1)
    return seen


def check_a_part_of_the_picture_sees_its_part_of_the_pose():
    model, positive, negative, latent = applied(wide(), pose=pose(), start_frame=start())
    (part,) = call("ConditioningSetArea", conditioning=positive, width=32, height=48, x=32, y=0, strength=1.0)
    for _, extras in part:  # a video's area has frames too
        extras["area"] = (2, 6, 4, 0, 0, 4)
    (mixed,) = call("ConditioningCombine", conditioning_1=positive, conditioning_2=part)
    latents = ksampler(model, mixed, negative, latent)
    assert bool(torch.isfinite(latents).all())
    assert largest(latents - ksampler(model, positive, negative, latent)) > 0


def check_conditionings_hold_tensors_numbers_and_strings():
    plain = {key for _, extras in applied(wide())[1] for key in extras}
    _, positive, negative, _ = applied(wide(), pose=pose(), start_frame=start())
    for conditioning in (positive, negative):
        for _, extras in conditioning:
            new = {key: value for key, value in extras.items() if key not in plain}
            assert sorted(new) == [
                "contextanyone_pose", "contextanyone_pose_end", "contextanyone_pose_start",
                "contextanyone_pose_strength", "contextanyone_start_frame",
            ]  # fmt: skip
            assert all(type(value) in (torch.Tensor, int, float, str) for value in new.values())


def check_nothing_that_goes_in_is_written_into():
    given = keypoints()
    before, taken = copy.deepcopy(given), pose(keypoints=given)
    graphs = applied(wide(), pose=taken)
    kept = graphs[1][0][1]["contextanyone_pose"].clone()
    ksampler(*graphs)
    applied(wide(), pose=taken, pose_strength=2.0)
    assert given == before
    assert torch.equal(graphs[1][0][1]["contextanyone_pose"], kept)


def check_a_narrow_model_refuses_them_by_name():
    vae = miniature()[2]
    for given, words in (
        ({"pose": pose()}, "pose is connected, and this model has no inputs for it"),
        ({"start_frame": start()}, "start_frame is connected, and this model"),
        ({"pose": pose(), "start_frame": start()}, "pose and start_frame are connected, and this model has no inputs"),
    ):
        problem = refusal(lambda given=given: applied(narrow(), pictures=(), vae=vae, **given))
        assert problem.startswith(words), problem
        assert "Wan2.1-Fun-1.3B-Control" in problem
    _, positive, negative, latent = applied(wide(), pose=pose())  # of another model
    with torch.inference_mode():
        assert "this model has no inputs for it" in refusal(lambda: ksampler(narrow(), positive, negative, latent))


def people(count: int):
    frames = keypoints()
    for frame in frames:
        one = frame["people"][0]
        moved = [value + 150 * index if i % 3 == 0 else value for index in range(1, count)
                 for i, value in enumerate(one["pose_keypoints_2d"])]  # fmt: skip
        frame["people"] = [one] * min(count, 1) + [{"pose_keypoints_2d": moved}] * (count > 1)
    return frames


def check_keypoints_that_are_none_say_what_to_do():
    wrong = {
        "The pose at keypoints shows nobody": {"keypoints": people(0)},
        "The pose at keypoints shows 2 people": {"keypoints": people(2)},
        "choose one with person, such as 1": {"keypoints": people(2)},
        "person 3 is asked for": {"keypoints": people(2), "person": 3},
        "The pose at keypoints holds no keypoints": {"keypoints": []},
        "does not say how large": {"keypoints": [{"people": keypoints()[0]["people"]}]},
        "numbers that are not finite": {"keypoints": json.loads(json.dumps(keypoints()).replace("1.0", "NaN", 1))},
        "needs a body": {"fit": "bones"},
        "fit is none, which leaves it aside": {"fit": "none", "body": keypoints("walk")},
        "The body at body shows 2 people": {"body": people(2)},
        "connected and body_file chosen": {"body": keypoints("walk"), "body_file": "me.safetensors"},
        "me.safetensors is no longer in models/loras": {"body_file": "me.safetensors"},
        "states 16 frames a second, asked for are 30; set fps to 0": {"fps": 30.0},
        "Neither keypoints nor image is connected": {"keypoints": None},
        "or both are": {"image": torch.zeros(5, 48, 64, 3), "keypoints": keypoints()},
        "body, fit and person are for keypoints": {"image": torch.zeros(5, 48, 64, 3), "body": keypoints("walk")},
        "no plain background": {"image": torch.rand(5, 48, 64, 3)},
        "image holds NaN": {"image": torch.full((5, 48, 64, 3), torch.nan)},
    }
    for words, changed in wrong.items():
        problem = refusal(lambda changed=changed: pose(**changed))
        assert words in problem, (words, problem)
        assert "--" not in problem, "the command line's options mean nothing here"
        assert "\n" not in problem
    chosen = pose(keypoints=people(2), person=1)
    assert chosen.pose.num_frames == 5


def check_numbers_that_are_none_are_refused_before_the_run():
    ask, example, apply = node("ContextAnyonePose"), node("ContextAnyoneExamplePose"), node("ContextAnyoneApply")
    for name, value in (("person", -1), ("fps", math.nan), ("pose_start", 2.0), ("pose_end", math.nan)):
        assert f"{name} is {value}" in refusal(lambda given={name: value}: ask.validate_inputs(**given))
    assert "from 0.8 to 0.2" in refusal(lambda: ask.validate_inputs(pose_start=0.8, pose_end=0.2))
    assert "fit is 'bone'; it must be one of the list, such as bones" in refusal(
        lambda: ask.validate_inputs(fit="bone")
    )
    assert "length is 8" in refusal(lambda: example.validate_inputs(length=8))
    assert "pose_strength is nan" in refusal(lambda: apply.validate_inputs(pose_strength=math.nan))
    assert "pose_strength is 40.0" in refusal(lambda: applied(wide(), pose_strength=40.0))
    assert "the example dance has 81 frames" in refusal(lambda: keypoints(length=85))


def check_poses_that_do_not_fit_the_video_say_what_to_do():
    frames = torch.from_numpy(np.load(graph.DATA / "drawn.npy").astype(np.float32) / 255.0)
    wrong = {
        "the clip 9; ask for at most 5 frames": {"pose": pose(), "length": 9},
        "the clip 9; ask for at most 5.": {"pose": pose(image=frames), "length": 9},
        "drawn poses are never resized": {"pose": pose(image=frames), "width": 48},
        "pose is a list; connect ContextAnyone Pose": {"pose": keypoints()},
        "pose is null": {"pose": None},
        "start_frame is null": {"start_frame": None},
        "vae is null": {"vae": None},
        "start_frame holds 2 pictures": {"start_frame": start().repeat(2, 1, 1, 1)},
        "start_frame has 1 channel": {"start_frame": start()[..., :1]},
        "The start frame is 128 x 128 pixels, the video 64 x 48; it": {"start_frame": torch.rand(1, 128, 128, 3)},
    }
    for words, changed in wrong.items():
        problem = refusal(lambda changed=changed: applied(wide(), **changed))
        assert words in problem, (words, problem)


def prompt(**changed):
    """A graph in API form up to Apply ContextAnyone, without a reference; a pose of 9 frames for a clip of 5."""
    size = stack.SIZE | {"batch_size": 1, "emphasis": 1.0, "gap": 0.0}
    apply = {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "pose": ["pose", 0]}
    texts = {"clip": ["1", 1], "first": stack.FIRST, "later": stack.LATER, "negative": ""}
    return {
        "1": {"class_type": "ContextAnyoneMiniatureLoader", "inputs": {}},
        "model": {
            "class_type": "ContextAnyoneLoader",
            "inputs": {"model_name": "wide.safetensors", "weight_dtype": "default"},
        },
        "example": {"class_type": "ContextAnyoneExamplePose", "inputs": {"motion": "dance", "length": 9}},
        "pose": {"class_type": "ContextAnyonePose", "inputs": {"keypoints": ["example", 0]} | POSE_WIDGETS | changed},
        "text": {"class_type": "ContextAnyonePrompt", "inputs": texts},
        "apply": {"class_type": "ContextAnyoneApply", "inputs": apply | size | {"vae": ["1", 2]}},
    }


def check_a_graph_shows_the_pose_and_says_what_is_cut():
    wide()
    session, keep = Session(), {"latent": ("apply", 3)}
    run = session.run(prompt(), keep)
    assert run.ok, run.problem
    (shown,) = run.told("pose")["images"]
    with Image.open(Path(folder_paths.get_temp_directory()) / shown["filename"]) as preview:
        assert preview.n_frames == 9
        assert max(preview.size) == 384
    (words,) = run.told("apply")[pack("nodes._comfy.notes").NOTE]
    assert words == ("Apply ContextAnyone: The pose at keypoints has 9 frames at 16 a second; the first 5 are used"), (
        words
    )
    again = session.run(prompt(pose_end=0.5), keep)
    assert again.executed == ["pose", "apply"], again.executed
    refused = session.run(prompt(pose_start=0.9, pose_end=0.5), keep)
    assert list(refused.node_errors) == ["pose"], refused.problem


def check_a_drawn_video_without_a_skeleton_is_told_of():
    empty = torch.full((5, 48, 64, 3), 127 / 255)
    taken, odd = pack("nodes._comfy.poses").take_drawn(empty, 0.0)
    assert odd.startswith("The drawn poses show no skeleton")
    assert taken.num_frames == 5


def check_a_plain_model_file_says_that_it_follows_poses():
    wide()
    _, words = pack("nodes._comfy.loading").load_by_name("wide.safetensors", "default")
    assert words.endswith("follows reference pictures, poses and a start frame."), words
