"""The nodes give what the headless pipeline gives, and what native Wan gives; nothing that goes in is written into."""

from __future__ import annotations

import copy
import dataclasses
import json
from unittest import mock

import comfy.sd
import comfy.utils
import graph
import stack
import torch
from graph import call, pack
from refusals import refusal
from stack import applied, ksampler, largest, miniature

TOLERANCE = 1e-4
EVERYWHERE = {"guidance_low": 0.0, "guidance_high": 1.0}
INTERVAL = {"guidance_low": 0.6, "guidance_high": 0.95}


def headless(name: str) -> torch.Tensor:
    return comfy.utils.load_torch_file(str(graph.DATA / "parity.safetensors"))[name]


def normalised(difference: torch.Tensor) -> float:
    """Largest difference in the model's own units: latents over their channel's standard deviation."""
    return largest(difference / headless("std"))


def check_ksampler_equals_the_headless_pipeline():
    assert normalised(ksampler(*applied()) - headless("one")) < TOLERANCE


def check_two_references_equal_the_headless_pipeline():
    latents = ksampler(*applied(pictures=(stack.PICTURE, stack.OTHER_VIEW)))
    assert normalised(latents - headless("two")) < TOLERANCE
    assert normalised(latents - headless("one")) > 0.01, "the second reference changes nothing"


def check_a_batch_of_pictures_is_several_references():
    _, _, vae, clip_vision = miniature()
    with torch.inference_mode():
        views = [call("ContextAnyoneExamplePicture", picture=name)[0] for name in (stack.PICTURE, stack.OTHER_VIEW)]
        taken = pack("nodes._comfy.references").take_pictures(torch.cat(views), None, vae, clip_vision)
    chained = stack.references(stack.PICTURE, stack.OTHER_VIEW)
    assert [torch.equal(a.image, b.image) for a, b in zip(taken, chained, strict=True)] == [True, True]


def check_no_reference_equals_the_headless_pipeline():
    assert normalised(ksampler(*applied(pictures=())) - headless("none")) < TOLERANCE


def check_the_guider_equals_headless_dual_guidance():
    model, positive, negative, latent = applied(negative="A city.", emphasis=0.7, gap=5.0)
    scales = {"guidance_scale": 3.0, "reference_scale": 2.0}
    (guider,) = call("ContextAnyoneGuider", model=model, positive=positive, negative=negative, **scales)
    assert normalised(sampled(guider, model, latent) - headless("dual")) < TOLERANCE


def check_the_guider_takes_the_models_own_scales():
    core = pack("contextanyone_core.sampling.guidance")
    model, positive, negative, _ = applied()
    given = {"model": model, "positive": positive, "negative": negative, "reference_scale": 2.0}
    (own,) = call("ContextAnyoneGuider", guidance_scale=0.0, **given)
    assert own.guidance == core.DualGuidance(3.0, 2.0)
    (asked,) = call("ContextAnyoneGuider", guidance_scale=4.0, **given)
    assert asked.guidance == core.DualGuidance(4.0, 2.0)


def check_dual_guidance_without_references_makes_two_passes():
    model, positive, negative, latent = applied(pictures=())
    given = {"model": model, "positive": positive, "negative": negative}
    (guider,) = call("ContextAnyoneGuider", guidance_scale=3.0, reference_scale=2.0, **given)
    passes, out = counted(model, lambda: sampled(guider, model, latent))
    assert passes == 2 * 4
    assert normalised(out - ksampler(model, positive, negative, latent)) < TOLERANCE


def counted(model, run):
    """How many passes the network makes while something runs, and what comes of it."""
    batches = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        out = run()
    finally:
        handle.remove()
    return sum(batches), out


def check_an_interval_guides_some_steps_as_in_the_headless_pipeline():
    """Sigmas 1, 0.9, 0.75, 0.5: the two in the middle are guided, the others are one pass."""
    model, positive, negative, latent = applied(negative="A city.", emphasis=0.7, gap=5.0)
    given = {"model": model, "positive": positive, "negative": negative, "guidance_scale": 3.0, "reference_scale": 2.0}
    (plain,), (whole,) = (call("ContextAnyoneGuider", **given, **more) for more in ({}, EVERYWHERE))
    assert torch.equal(sampled(plain, model, latent), sampled(whole, model, latent))
    (guider,) = call("ContextAnyoneGuider", **given, **INTERVAL)
    passes, out = counted(model, lambda: sampled(guider, model, latent))
    assert passes == 1 + 3 + 3 + 1
    assert normalised(out - headless("dual_interval")) < TOLERANCE


def check_the_simple_sampler_takes_an_interval():
    model = miniature()[0]
    assert torch.equal(simple()[0]["samples"], simple(**EVERYWHERE)[0]["samples"])
    passes, (video, _) = counted(model, lambda: simple(**INTERVAL))
    assert passes == 1 + 2 + 2 + 1
    assert normalised(video["samples"] - headless("one_interval")) < TOLERANCE
    validate = pack("nodes.guidance").ContextAnyoneSampler.validate_inputs
    assert "0.9 to 0.1" in refusal(lambda: validate(guidance_low=0.9, guidance_high=0.1))
    assert validate(guidance_low=0.9, guidance_high=None) is True


def check_a_cfg_function_of_another_node_counts_with_cfg_and_is_told_of_with_dual():
    model, positive, negative, latent = applied()
    (changed,) = call("RescaleCFG", model=model, multiplier=0.9)
    given = {"positive": positive, "negative": negative, "guidance_scale": 3.0, "reference_scale": 2.0}
    sampling = pack("nodes._comfy.sampling")
    with mock.patch.object(sampling._LOG, "warning") as told:
        plain = sampled(call("ContextAnyoneGuider", model=model, **given)[0], model, latent)
        assert told.call_count == 0
        same = sampled(call("ContextAnyoneGuider", model=changed, **given)[0], changed, latent)
    assert "Dual guidance leaves out" in told.call_args.args[0]
    assert torch.equal(same, plain)
    assert not torch.equal(ksampler(changed, positive, negative, latent), ksampler(model, positive, negative, latent))


def sampled(guider, model, latent):
    """Latents of SamplerCustomAdvanced, four steps."""
    (noise,) = call("RandomNoise", noise_seed=7)
    (sampler,) = call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
    custom = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return call("SamplerCustomAdvanced", **custom)[0]["samples"]


def simple(**changed):
    model, clip, _, _ = miniature()
    own = {"guidance": "cfg", "guidance_scale": 0.0, "reference_scale": 0.0, "emphasis": 1.0, "shift": 0.0, "gap": 0.0}
    settings = own | {"negative": "", "sampler_name": "euler", "steps": 4, "seed": 7} | stack.SIZE | changed
    texts = {"first": stack.FIRST, "later": stack.LATER}
    reference = stack.references(stack.PICTURE)
    return call("ContextAnyoneSampler", model=model, clip=clip, reference=reference, **texts, **settings)


def check_the_simple_sampler_equals_the_headless_pipeline():
    video, redrawn = simple()
    assert normalised(video["samples"] - headless("one")) < TOLERANCE
    assert redrawn["samples"].shape == (1, 16, 1, 6, 8)


def check_the_simple_sampler_guides_dual_as_the_headless_pipeline():
    scales = {"guidance": "dual", "guidance_scale": 3.0, "reference_scale": 2.0}
    video, _ = simple(**scales, negative="A city.", emphasis=0.7, gap=5.0)
    assert normalised(video["samples"] - headless("dual")) < TOLERANCE


def check_the_redrawn_reference_is_the_headless_one():
    _, _, vae, _ = miniature()
    _, redrawn = simple()
    (picture,) = call("VAEDecode", vae=vae, samples=redrawn)
    ours = picture.reshape(1, 48, 64, 3).movedim(-1, 1) * 2 - 1
    assert largest(ours.cpu() - headless("redrawn")) < 1e-3


def plain_wan() -> tuple[dict[str, torch.Tensor], object]:
    """Random weights of a small plain Wan transformer, and its config."""
    transformer = pack("contextanyone_core.model.transformer").ContextAnyoneTransformer
    config_class = pack("contextanyone_core.config").ContextAnyoneConfig
    sizes = {"dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 2, "text_dim": 32}
    config = dataclasses.replace(config_class.wan_1_3b(), **sizes, image_dim=None, emphasize=False)
    torch.manual_seed(3)
    network = transformer(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.state_dict(), config


def check_without_a_reference_we_are_native_wan():
    weights, config = plain_wan()
    sizes = {"dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 2, "text_dim": 32, "text_len": 512}
    native = comfy.sd.load_diffusion_model_state_dict(
        {name: tensor.clone() for name, tensor in weights.items()},
        metadata={"config": json.dumps({"transformer": sizes})},
    )
    ours = pack("nodes._comfy.model").native_model(config, {name: tensor.clone() for name, tensor in weights.items()})
    texts = [[torch.nn.functional.pad(torch.randn(1, 9, 32), (0, 0, 0, 503)), {}] for _ in range(2)]
    latent = {"samples": torch.zeros(1, 16, 2, 6, 8)}
    theirs = ksampler(call("ModelSamplingSD3", model=native, shift=5.0)[0], texts[:1], texts[1:], latent)
    mine = ksampler(call("ModelSamplingSD3", model=ours, shift=5.0)[0], texts[:1], texts[1:], latent)
    assert largest(theirs) > 0.1
    assert largest(theirs - mine) < TOLERANCE


def check_a_conditioning_without_references_is_plain_text_to_video():
    model, clip, _, _ = miniature()
    plain = ksampler(*applied(pictures=()))
    (text,) = call(
        "CLIPTextEncode", clip=clip, text=f"{stack.FIRST} {stack.LATER}".replace("(", "\\(").replace(")", "\\)")
    )
    (nothing,) = call("CLIPTextEncode", clip=clip, text="")
    latent = {"samples": torch.zeros(1, 16, 2, 6, 8)}
    assert torch.equal(ksampler(model, text, nothing, latent), plain)


def check_nothing_that_goes_in_is_written_into():
    model, positive, negative, latent = applied()
    before = [copy.deepcopy(strip(x)) for x in (positive, negative, latent)]
    first = ksampler(model, positive, negative, latent)
    # a second branch of the same graph, with other settings, between two runs of the first
    given = {"model": model, "positive": positive, "negative": negative}
    given |= {"reference": stack.references(stack.OTHER_VIEW), "batch_size": 1, "emphasis": 0.0, "gap": 3.0}
    other = call("ContextAnyoneApply", **given, **stack.SIZE)
    second = ksampler(*other)
    assert torch.equal(ksampler(model, positive, negative, latent), first)
    assert not torch.equal(second, first)
    assert before_equals(before, [strip(x) for x in (positive, negative, latent)])


def strip(value):
    """Conditionings and latents as plain containers of tensors and numbers."""
    if isinstance(value, dict):
        return {key: strip(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strip(item) for item in value]
    if hasattr(value, "latents"):
        return strip([*value.latents, *value.image_embeds, value.text_embeds, value.gap, value.key])
    return value


def before_equals(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(before_equals(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(before_equals(a, b) for a, b in zip(one, two, strict=True))
    return one == two


def check_the_shift_of_other_nodes_counts():
    model, positive, negative, latent = applied()
    (shifted,) = call("ModelSamplingSD3", model=model, shift=8.0)
    assert largest(ksampler(shifted, positive, negative, latent) - ksampler(model, positive, negative, latent)) > 0.01
