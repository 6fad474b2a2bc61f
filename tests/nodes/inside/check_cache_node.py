"""ContextAnyone Cache: where the references are kept, and that the video stays the same."""

from __future__ import annotations

import functools
from unittest import mock

import comfy.model_management
import stack
import torch
from check_bernini import REFALIGN, load
from check_cache import made_by
from graph import Session, call, pack
from refusals import prompt, refusal
from stack import applied, ksampler, largest, miniature

GIB = 1 << 30


def kept(device: str, dtype: str = "default"):
    return call("ContextAnyoneCache", model=miniature()[0], device=device, dtype=dtype)[0]


def sampled(device: str, dtype: str = "default", **changed) -> torch.Tensor:
    return ksampler(*applied(kept(device, dtype), **changed), steps=2)


@functools.cache
def plain() -> torch.Tensor:
    return ksampler(*applied(), steps=2)


def check_every_device_gives_the_same_video():
    for device in ("auto", "gpu", "cpu", "off"):
        assert torch.equal(sampled(device), plain()), device


def check_two_references_of_a_batch_and_none():
    two = {"pictures": (stack.PICTURE, stack.OTHER_VIEW), "batch_size": 2}
    assert torch.equal(sampled("cpu", **two), ksampler(*applied(**two), steps=2))
    assert torch.equal(sampled("off", **two), ksampler(*applied(**two), steps=2))
    assert torch.equal(sampled("off", pictures=()), ksampler(*applied(pictures=()), steps=2))


def check_int8_stays_near():
    near = sampled("gpu", "int8")
    assert 0 < largest(near - plain()) < 0.05 * largest(plain()), largest(near - plain()) / largest(plain())
    assert torch.equal(near, sampled("cpu", "int8"))


def check_off_computes_the_references_in_every_pass():
    network = pack("nodes._comfy.network").ContextAnyoneNetwork
    with mock.patch.object(network, "_embed_references", autospec=True, side_effect=network._embed_references) as calls:
        sampled("off")
        assert calls.call_count == 2, "the count of steps"
        sampled("cpu")
        assert calls.call_count == 3, "once for the run"
    assert made_by(lambda: sampled("off")) == 0, "no whole cache exists"


def check_the_cpu_keeps_it_by_blocks():
    run = pack("nodes._comfy.run")
    core = pack("contextanyone_core.runtime.reference_cache")
    seen = []

    def note(cache, options):
        seen.append((options, core.keep(cache, options)))
        return seen[-1][1]

    with mock.patch.object(run, "keep", note):
        sampled("cpu", "int8")
    ((options, cache),) = seen
    assert options == core.CacheOptions("cpu", "int8")
    assert isinstance(cache.blocks, core.KeptBlocks)
    assert cache.blocks.kept[0].self_attn[0].levels.dtype == torch.int8


def check_auto_goes_by_the_memory_of_the_card():
    run = pack("nodes._comfy.run")
    options = pack("contextanyone_core.runtime.reference_cache").CacheOptions
    for total, device in ((80 * GIB, "gpu"), (1 << 20, "cpu")):
        seen = []
        with (
            mock.patch.object(run, "keep", lambda cache, given, seen=seen: seen.append(given) or cache),
            mock.patch.object(comfy.model_management, "get_total_memory", return_value=total),
        ):
            sampled("auto")
        assert seen == [options(device)], (total, seen)


def check_what_is_kept_elsewhere_is_not_planned_for():
    model = miniature()[0].model
    kind = type(model)
    required, planned = kind.memory_required, {}

    def note(self, *arguments, **given):
        planned.setdefault(self.cache_options.device, []).append(required(self, *arguments, **given))
        return planned[self.cache_options.device][-1]

    with mock.patch.object(kind, "memory_required", note):
        for device in ("gpu", "cpu", "off"):
            sampled(device)
    assert max(planned["gpu"]) > max(planned["cpu"]) > max(planned["off"])
    assert model.cache_options == kind.cache_options, "the run is over"


def check_an_interrupted_run_leaves_nothing_behind():
    run = Session().run(prompt(model=["5", 0]) | node_5("cpu", "int8"), keep={"latent": ("4", 0)}, interrupt_at=1)
    assert run.interrupted
    assert miniature()[0].model.cache_options.device == "gpu"
    assert "contextanyone_cache" not in miniature()[0].model_options["transformer_options"], "the model was cloned"
    assert torch.equal(ksampler(*applied(), steps=2), plain())


def check_weights_that_change_within_a_run_are_seen():
    import comfy.hooks

    _, positive, negative, latent = applied()
    torch.manual_seed(6)
    name = "diffusion_model.blocks.0.self_attn.k"
    weights = {f"{name}.lora_A.weight": torch.randn(2, 256), f"{name}.lora_B.weight": torch.randn(256, 2) * 0.1}
    hooked = comfy.hooks.set_hooks_for_conditioning(
        positive, hooks=comfy.hooks.create_hook_lora(lora=weights, strength_model=1.0, strength_clip=0.0)
    )
    wanted = ksampler(miniature()[0], hooked, negative, latent, steps=2)
    for device in ("cpu", "off"):
        assert torch.equal(ksampler(kept(device), hooked, negative, latent, steps=2), wanted), device


def node_5(device: str, dtype: str):
    inputs = {"model": ["1", 0], "device": device, "dtype": dtype}
    return {"5": {"class_type": "ContextAnyoneCache", "inputs": inputs}}


def check_in_a_graph_with_the_redrawn_reference():
    wanted = {"latent": ("4", 0), "redrawn": ("4", 1)}
    without = Session().run(prompt(), keep=wanted)
    for device in ("cpu", "off"):
        run = Session().run(prompt(model=["5", 0]) | node_5(device, "default"), keep=wanted)
        assert run.ok, run.problem
        for name in wanted:
            assert torch.equal(run.values[name]["samples"], without.values[name]["samples"]), (device, name)


def check_wrong_choices_and_models_are_refused():
    model = miniature()[0]
    assert "device is 'gpuu'" in refusal(lambda: call("ContextAnyoneCache", model=model, device="gpuu", dtype="int8"))
    assert "dtype is 'int4'" in refusal(lambda: call("ContextAnyoneCache", model=model, device="gpu", dtype="int4"))
    assert "model is null" in refusal(lambda: call("ContextAnyoneCache", model=None))
    run = Session().run(prompt(model=["5", 0]) | node_5("disk", "default"), keep={"latent": ("4", 0)})
    assert "disk" in run.problem
    assert not run.executed


def check_a_model_without_a_cache_is_told():
    with_cache = pack("nodes._comfy.cache").with_cache
    for name in (REFALIGN, "bernini_r_1.3B.safetensors", "Phantom-Wan-tiny.safetensors"):
        model = load(name)
        same, note = with_cache(model, "cpu", "int8")
        assert same is model
        assert "keeps nothing of its references" in str(note)
    assert with_cache(miniature()[0], "cpu", "int8")[1] is None
