"""Phantom's file is told by its name and runs its own way: equal to the headless sampler, with stock nodes too."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import comfy.utils
import folder_paths
import graph
import stack
import torch
from graph import call, pack
from stack import applied, ksampler, largest

TOLERANCE = 1e-4


def headless(name: str) -> torch.Tensor:
    return comfy.utils.load_torch_file(str(graph.DATA / "phantom.safetensors"))[name]


def normalised(difference: torch.Tensor) -> float:
    return largest(difference / headless("std"))


@functools.cache
def model(name: str = "Phantom-Wan-tiny.safetensors"):
    """The tiny file under a name."""
    folder = next(path for path in map(Path, folder_paths.get_folder_paths("diffusion_models")) if path.is_dir())
    shutil.copy(graph.DATA / "Phantom-Wan-tiny.safetensors", folder / name)
    return call("ContextAnyoneLoader", model_name=name, weight_dtype="default")[0]


def sampled(guider, latent):
    (noise,) = call("RandomNoise", noise_seed=7)
    (sampler,) = call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=model(), scheduler="simple", steps=4, denoise=1.0)
    given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return call("SamplerCustomAdvanced", **given)[0]["samples"]


def check_the_guider_makes_phantoms_three_passes():
    patcher, positive, negative, latent = applied(model(), negative="A city.")
    scales = {"guidance_scale": 7.5, "reference_scale": 5.0}
    (guider,) = call("ContextAnyoneGuider", model=patcher, positive=positive, negative=negative, **scales)
    found = sampled(guider, latent)
    assert found.shape == (1, 16, 2, 6, 8), "references are trimmed"
    assert normalised(found - headless("dual")) < TOLERANCE, normalised(found - headless("dual"))


def check_the_guider_wants_no_special_negative():
    """The negative prompt may come straight from the prompt's node."""
    _, clip, _, _ = stack.miniature()
    patcher, positive, _, latent = applied(model(), negative="A city.")
    _, plain = call("ContextAnyonePrompt", clip=clip, first=stack.FIRST, later=stack.LATER, negative="A city.")
    scales = {"guidance_scale": 7.5, "reference_scale": 5.0}
    (guider,) = call("ContextAnyoneGuider", model=patcher, positive=positive, negative=plain, **scales)
    assert normalised(sampled(guider, latent) - headless("dual")) < TOLERANCE


def check_ksampler_guides_with_blank_references_in_the_negative():
    assert normalised(ksampler(*applied(model(), negative="A city.")) - headless("cfg")) < TOLERANCE
    two = ksampler(*applied(model(), (stack.PICTURE, stack.OTHER_VIEW), negative="A city."))
    assert normalised(two - headless("two")) < TOLERANCE
    assert normalised(two - headless("cfg")) > 0.01


def check_the_simple_sampler_runs_phantom():
    _, clip, _, _ = stack.miniature()
    own = {"guidance": "dual", "guidance_scale": 0.0, "reference_scale": 0.0, "emphasis": 1.0, "shift": 0.0, "gap": 0.0}
    settings = own | {"negative": "A city.", "sampler_name": "euler", "steps": 4, "seed": 7} | stack.SIZE
    given = {"model": model(), "clip": clip, "reference": stack.references(stack.PICTURE)}
    video, redrawn = call("ContextAnyoneSampler", first=stack.FIRST, later=stack.LATER, **given, **settings)
    assert normalised(video["samples"] - headless("dual")) < TOLERANCE
    assert not redrawn["samples"].any()


def check_a_batch_has_the_same_references():
    latents = ksampler(*applied(model(), negative="A city.", batch_size=2))
    assert latents.shape[0] == 2
    assert normalised(latents[:1] - latents[1:]) > 0.01


def check_the_same_weights_under_another_name_stay_plain_wan():
    plain = model("wan2.1_t2v_tiny.safetensors")
    kind = pack("nodes._comfy.phantom").PhantomModel
    assert not isinstance(plain.model, kind)
    assert isinstance(model().model, kind)
    _, positive, negative, latent = applied(plain, negative="A city.", pictures=())
    without = ksampler(plain, positive, negative, latent)
    assert torch.equal(without, ksampler(model(), positive, negative, latent))
    assert all("contextanyone_references" not in extras for _, extras in applied(plain)[2])


def check_the_node_says_what_it_can_do():
    model()
    _, words = pack("nodes._comfy.loading").load_by_name("Phantom-Wan-tiny.safetensors", "default")
    assert "follows reference pictures, in Phantom's way" in words


def check_memory_counts_the_references_as_frames():
    native = model().model
    shape = [1, 16, 2, 6, 8]
    size = pack("nodes._comfy.model").reference_size([torch.zeros(1, 16, 1, 6, 8)] * 2, [])
    assert native.memory_required(shape, {"references": [size]}) == native.memory_required([1, 16, 4, 6, 8])
