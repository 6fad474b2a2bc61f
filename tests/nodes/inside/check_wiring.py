"""Nodes in orders and with inputs that graphs have and one node alone does not show."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths
import stack
import torch
from check_pose import POSE_WIDGETS, TOLERANCE, keypoints, simple
from graph import call, node, pack
from refusals import in_models, refusal
from stack import applied, ksampler, largest, miniature

EXAMPLE = "zuv_blonde_afro.safetensors"
"""A personal file that comes with the pack."""


def pose(**changed):
    return call("ContextAnyonePose", keypoints=keypoints(), **POSE_WIDGETS | changed)[0]


def start() -> torch.Tensor:
    return torch.linspace(0, 1, 48 * 64 * 3).view(1, 48, 64, 3)


def check_a_second_apply_says_everything_anew():
    """Without a reference and a pose it is plain text to video, whatever an Apply before it had."""
    first = applied(miniature()[0], pose=pose(), start_frame=start(), emphasis=2.0)
    texts = {"first": stack.FIRST, "later": stack.LATER, "negative": ""}
    plus, minus = call("ContextAnyonePrompt", clip=miniature()[1], **texts)
    settings = {**stack.SIZE, "batch_size": 1, "emphasis": 1.0, "gap": 0.0}
    again = call("ContextAnyoneApply", model=miniature()[0], positive=first[1], negative=first[2], **settings)
    plain = call("ContextAnyoneApply", model=miniature()[0], positive=plus, negative=minus, **settings)
    assert torch.equal(ksampler(*again), ksampler(*plain))
    assert largest(ksampler(*first) - ksampler(*plain)) > 0.1


def check_another_vae_is_named_for_pose_and_start_frame_too():
    class OtherVae:
        def encode(self, pixels):
            return torch.zeros(1, 5, pixels.shape[0], 6, 8)

    for given, what in (({"pose": pose()}, "a video"), ({"start_frame": start()}, "a picture")):
        problem = refusal(lambda given=given: applied(miniature()[0], pictures=(), vae=OtherVae(), **given))
        assert problem.startswith("This VAE makes latents of shape (1, 5,"), problem
        assert f"from {what}, the model needs (1, 16," in problem
        assert "wan_2.1_vae" in problem


def check_what_is_transparent_becomes_white_in_every_picture():
    take, vae = pack("nodes._comfy.references").take_pictures, miniature()[2]
    picture = torch.zeros(1, 32, 32, 4)
    picture[:, :16, :, 3] = 1  # black above, transparent below
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :16] = 1
    (taken,) = take(picture, mask, vae, None)
    assert float(taken.image[..., :16, :16].max()) == -1
    assert float(taken.image[..., 16:, :].min()) == float(taken.image[..., 16:].min()) == 1
    clear = torch.cat((torch.rand(1, 48, 64, 3), torch.zeros(1, 48, 64, 1)), -1)
    assert "start_frame is transparent everywhere" in refusal(lambda: applied(miniature()[0], start_frame=clear))
    assert "picture is transparent everywhere" in refusal(lambda: take(clear, torch.ones(1, 48, 64), vae, None))
    half = torch.cat((torch.rand(1, 48, 64, 3), torch.ones(1, 48, 64, 1)), -1)
    half[:, 24:, :, 3] = 0
    white = half[..., :3].clone()
    white[:, 24:] = 1
    ours, wanted = (
        applied(miniature()[0], start_frame=image)[1][0][1]["contextanyone_start_frame"] for image in (half, white)
    )
    assert torch.equal(ours, wanted)


def check_a_file_that_is_written_anew_under_its_name_is_read_again():
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(pack("nodes._comfy.personal_files").personal_path(EXAMPLE), folder / "anew.safetensors")
    name = "anew.safetensors"
    model = in_models("written_anew.safetensors", lambda path: path.write_bytes(b"weights"))
    model_path = pack("nodes._comfy.loading").model_path(model)
    personal = pack("nodes._comfy.personal_files").personal_path(name)
    for kind, given, path in (
        ("ContextAnyonePose", {"body_file": name}, personal),
        ("ContextAnyonePersonalLoader", {"file": name}, personal),
        ("ContextAnyoneLoader", {"model_name": model}, model_path),
    ):
        before = node(kind).fingerprint_inputs(**given)
        assert before == node(kind).fingerprint_inputs(**given)
        path.touch()
        assert node(kind).fingerprint_inputs(**given) != before, kind
        assert node(kind).fingerprint_inputs(**dict.fromkeys(given)) == (0, 0), "over a link it is not known yet"
    assert node("ContextAnyonePose").fingerprint_inputs(body_file="none") == (0, 0)


def check_the_packs_examples_are_bodies_too():
    ask = pack("nodes._comfy.poses")
    listed = pack("nodes._comfy.personal_files").personal_names()
    assert ask.body_files() == ["none", *listed]
    assert ask.given_body(None, EXAMPLE).lengths.shape == (17,)


def check_a_second_person_on_a_model_is_told():
    load = pack("nodes._comfy.personal").load_person
    once, person, odd = load(miniature()[0], EXAMPLE, 1.0)
    assert not odd
    assert f'The model holds "{person.trigger}" already' in load(once, EXAMPLE, 1.0)[2]


def check_dual_guidance_tells_what_it_leaves_out():
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    log = logging.getLogger(pack("nodes._comfy.sampling").__name__)
    log.addHandler(handler)
    try:
        for patched in (miniature()[0], call("RescaleCFG", model=miniature()[0], multiplier=0.7)[0], tcfg()):
            heard.clear()
            model, positive, negative, latent = applied(patched)
            guider = dual(model, positive, negative)
            assert not heard
            sampled(guider, latent)
            assert len(heard) == (patched is not miniature()[0]), heard
    finally:
        log.removeHandler(handler)


def tcfg():
    return call("TCFG", model=miniature()[0])[0]


def dual(model, positive, negative):
    scales = {"guidance_scale": 3.0, "reference_scale": 2.0}
    return call("ContextAnyoneGuider", model=model, positive=positive, negative=negative, **scales)[0]


def sampled(guider, latent):
    (noise,), (sampler,) = call("RandomNoise", noise_seed=7), call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=guider.model_patcher, scheduler="simple", steps=2, denoise=1.0)
    given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return call("SamplerCustomAdvanced", **given)[0]["samples"]


def check_a_run_that_is_split_over_two_samplers_keeps_the_window():
    """By KSamplerAdvanced with leftover noise, and by SplitSigmas."""
    given = applied(miniature()[0], pose=pose(pose_start=0.25, pose_end=0.5))
    whole = ksampler(*given, cfg=1.0)
    model, positive, negative, latent = given
    advanced = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "steps": 4, "noise_seed": 7}
    advanced |= {"model": model, "positive": positive, "negative": negative}
    for cut in (1, 2, 3):
        (half,) = call(
            "KSamplerAdvanced", **advanced, add_noise="enable", latent_image=latent, start_at_step=0, end_at_step=cut,
            return_with_leftover_noise="enable",
        )  # fmt: skip
        (rest,) = call(
            "KSamplerAdvanced", **advanced, add_noise="disable", latent_image=half, start_at_step=cut, end_at_step=4,
            return_with_leftover_noise="disable",
        )  # fmt: skip
        assert largest(rest["samples"] - whole) < TOLERANCE, cut


def check_the_window_is_in_steps_of_the_samplers_own_shift():
    own = simple(model=miniature()[0], guidance_scale=1.0, shift=1.0, pose=pose(pose_end=0.5))
    (shifted,) = call("ModelSamplingSD3", model=miniature()[0], shift=1.0)
    model, positive, negative, latent = applied(shifted, pose=pose(pose_end=0.5))
    assert largest(own - ksampler(model, positive, negative, latent, cfg=1.0)) < TOLERANCE
