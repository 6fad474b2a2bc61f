"""The reference cache of a sampling run: the same latents as without it, made once, gone afterwards."""

from __future__ import annotations

from unittest import mock

import comfy.hooks
import comfy.model_management
import stack
import torch
from graph import call, pack
from stack import applied, ksampler, miniature, without_cache


def both(*arguments, **changed) -> tuple[torch.Tensor, torch.Tensor]:
    cached = ksampler(*arguments, **changed)
    with without_cache():
        return cached, ksampler(*arguments, **changed)


def made_by(action) -> int:
    """How many times references are encoded while something runs."""
    network = pack("nodes._comfy.network").ContextAnyoneNetwork
    with mock.patch.object(network, "encode_references", autospec=True, side_effect=network.encode_references) as calls:
        action()
    return calls.call_count


def check_one_run_encodes_the_references_once():
    graph = applied()
    assert made_by(lambda: ksampler(*graph)) == 1
    with without_cache():
        assert made_by(lambda: ksampler(*graph)) == 4, "the count is of steps"


def check_the_branches_of_dual_guidance_share_it():
    model, positive, negative, latent = applied(negative="A city.")
    scales = {"guidance_scale": 3.0, "reference_scale": 2.0}
    (guider,) = call("ContextAnyoneGuider", model=model, positive=positive, negative=negative, **scales)
    (noise,), (sampler,) = call("RandomNoise", noise_seed=7), call("KSamplerSelect", sampler_name="euler")
    (sigmas,) = call("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0)

    def run():
        given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
        return call("SamplerCustomAdvanced", **given)[0]["samples"]

    assert made_by(run) == 1
    cached = run()
    with without_cache():
        assert torch.equal(run(), cached)


def check_changes_between_runs_are_seen():
    for changed in (
        {},
        {"gap": 4.0},
        {"emphasis": 0.3},
        {"width": 96},
        {"later": "The same person is sitting in a room."},
    ):
        cached, plain = both(*applied(**changed))
        assert torch.equal(cached, plain), changed
    first = ksampler(*applied())
    for changed in ({"gap": 4.0}, {"emphasis": 0.3}, {"later": "The same person is sitting in a room."}):
        assert not torch.equal(ksampler(*applied(**changed)), first), changed
    assert torch.equal(ksampler(*applied()), first)


def lora(model, strength):
    """Half of a random rank-2 update on layers that the reference stream reads."""
    torch.manual_seed(5)
    names = [f"diffusion_model.blocks.{i}.{part}" for i in (0, 3) for part in ("self_attn.k", "emphasize_attn.v")]
    weights = {}
    for name in names:
        weights |= {f"{name}.lora_A.weight": torch.randn(2, 256), f"{name}.lora_B.weight": torch.randn(256, 2) * 0.1}
    with (
        mock.patch("comfy.utils.load_torch_file", return_value=(weights, {})),
        mock.patch("folder_paths.get_full_path_or_raise", return_value="lora.safetensors"),
    ):
        return call("LoraLoaderModelOnly", model=model, lora_name="lora.safetensors", strength_model=strength)[0]


def check_a_lora_changes_the_output_and_leaves_without_a_trace():
    model = miniature()[0]
    plain = ksampler(*applied())
    cached, uncached = both(*applied(lora(model, 1.0)))
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)
    assert torch.equal(ksampler(*applied(lora(model, 0.0))), plain)
    assert torch.equal(ksampler(*applied()), plain)


def check_two_references_in_one_graph():
    one, other = applied(), applied(pictures=(stack.OTHER_VIEW,))
    model, positive, negative, latent = one
    (combined,) = call("ConditioningCombine", conditioning_1=positive, conditioning_2=other[1])
    assert made_by(lambda: ksampler(model, combined, negative, latent)) == 2
    cached, plain = both(model, combined, negative, latent)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, ksampler(*one))


def check_a_batch_of_two():
    cached, plain = both(*applied(batch_size=2))
    assert cached.shape[0] == 2
    assert torch.equal(cached, plain)
    assert made_by(lambda: ksampler(*applied(batch_size=2))) == 1


def check_an_interrupted_run_leaves_nothing_behind():
    graph = applied()
    good = ksampler(*graph)
    network = graph[0].model.diffusion_model
    calls = []

    def stop(*_, **__):
        calls.append(1)
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException

    handle = network.register_forward_pre_hook(stop)
    try:
        ksampler(*applied(later="The same person is sitting in a room."))
        raise AssertionError("was not interrupted")
    except comfy.model_management.InterruptProcessingException:
        pass
    finally:
        handle.remove()
    assert "contextanyone_run" not in graph[0].model_options.get("transformer_options", {})
    assert torch.equal(ksampler(*graph), good)


def check_weights_that_change_within_a_run_are_seen():
    model, positive, negative, latent = applied()
    torch.manual_seed(6)
    weights = {}
    for name in ("diffusion_model.blocks.0.self_attn.k", "diffusion_model.blocks.2.self_attn.v"):
        weights |= {f"{name}.lora_A.weight": torch.randn(2, 256), f"{name}.lora_B.weight": torch.randn(256, 2) * 0.1}
    group = comfy.hooks.create_hook_lora(lora=weights, strength_model=1.0, strength_clip=0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.4))
    group.set_keyframes_on_hooks(keyframes)
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, hooks=group)
    cached, plain = both(model, hooked, negative, latent)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, ksampler(model, positive, negative, latent)), "the hook did nothing"
    assert torch.equal(ksampler(model, positive, negative, latent), ksampler(*applied()))


def check_the_cache_lives_for_the_run_only():
    import gc
    import weakref

    alive = []
    run = pack("nodes._comfy.run").SamplingRun
    network = pack("nodes._comfy.network").ContextAnyoneNetwork

    def note(self, *arguments, **given):
        cache = encode(self, *arguments, **given)
        alive.append(weakref.ref(cache))
        return cache

    encode = network.encode_references
    with mock.patch.object(network, "encode_references", note):
        ksampler(*applied())
    gc.collect()
    assert len(alive) == 1
    assert alive[0]() is None
    assert run(reuse=True).reconstructions("nothing") == []


def check_no_rotary_table_outlives_the_run():
    tables = pack("contextanyone_core.model.rope")._cached_table
    ksampler(*applied())
    assert tables.cache_info().currsize == 0, "ComfyUI could neither see nor free it"


def check_each_card_has_a_cache_of_its_own():
    runs, core = pack("nodes._comfy.run"), pack("contextanyone_core.model.references")
    run = runs.SamplingRun(reuse=True)
    inputs = core.ReferenceInputs([torch.zeros(1, 16, 1, 2, 2)], torch.zeros(1, 3, 8), [])
    references = runs.KeyedReferences(inputs, "key")
    for device in ("cpu", "meta", "cpu"):
        like = torch.zeros(1, device=device)
        cache = run.cache(references, like, lambda given: core.ReferenceCache([], given.latents))
        assert cache.outputs[0].device.type == device
    assert run.made == 2
