"""What ComfyUI does with native models works with ours: EasyCache, fp8, other samplers, attention, previews, memory."""

from __future__ import annotations

from unittest import mock

import stack
import torch
from graph import call, pack
from stack import applied, ksampler, largest, miniature


def forwards_of(action) -> int:
    network = pack("nodes._comfy.network").ContextAnyoneNetwork
    with mock.patch.object(network, "_velocity", autospec=True, side_effect=network._velocity) as calls:
        action()
    return calls.call_count


def check_easycache_skips_steps():
    model, positive, negative, latent = applied()
    (cached,) = call("EasyCache", model=model, reuse_threshold=1.0, start_percent=0.1, end_percent=0.95, verbose=False)
    every = forwards_of(lambda: ksampler(model, positive, negative, latent, steps=10))
    some = forwards_of(lambda: ksampler(cached, positive, negative, latent, steps=10))
    assert every == 20
    assert some < every


def check_every_kind_of_sampler_runs():
    graph = applied()
    for name, scheduler in (
        ("uni_pc", "simple"),
        ("dpmpp_2m", "sgm_uniform"),
        ("res_multistep", "beta"),
        ("lcm", "simple"),
    ):
        latents = ksampler(*graph, sampler_name=name, scheduler=scheduler, steps=3)
        assert bool(torch.isfinite(latents).all()), name


def check_attention_gets_the_options_of_the_run():
    model, positive, negative, latent = applied()
    seen = []

    def override(function, *arguments, **given):
        seen.append(arguments[0].shape)
        return function(*arguments, **given)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    plain = ksampler(model, positive, negative, latent)
    assert torch.equal(ksampler(patched, positive, negative, latent), plain)
    assert seen


def check_fp8_storage_runs_and_only_rounds_the_weights():
    loading, own = pack("nodes._comfy.loading"), miniature()[0]
    path = pack("contextanyone_core.model_specs").MINIATURE / "transformer.safetensors"
    small, rounded = (
        loading.load_contextanyone(path, loading.WEIGHT_DTYPES[name]) for name in ("fp8_e4m3fn", "default")
    )
    assert small.model.diffusion_model.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    with torch.no_grad():
        coarse = dict(small.model.diffusion_model.named_parameters())
        for name, parameter in rounded.model.diffusion_model.named_parameters():
            parameter.copy_(coarse[name])
    _, positive, negative, latent = applied()
    full, stored, expected = (ksampler(model, positive, negative, latent) for model in (own, small, rounded))
    assert largest(full - stored) > 0.01
    assert largest(stored - expected) < 1e-3


def check_the_lora_loader_finds_every_linear_layer():
    import comfy.lora

    model = miniature()[0].model
    known = set(comfy.lora.model_lora_keys_unet(model, {}))
    layers = [name for name, layer in model.diffusion_model.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert [name for name in layers if f"diffusion_model.{name}" not in known] == []
    assert [name for name in layers if f"lora_unet_{name.replace('.', '_')}" not in known] == []


def check_a_latent_preview_has_the_colours_of_the_model():
    import latent_preview

    model = miniature()[0]
    with mock.patch.object(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB):
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    latents = model.model.process_latent_in(encoded_picture())
    preview = previewer.decode_latent_to_preview(latents).resize((64, 64))
    (picture,) = call("ContextAnyoneExamplePicture", picture=stack.PICTURE)
    import numpy as np

    shown = torch.from_numpy(np.asarray(preview, dtype=np.float32)) / 255.0
    wanted = torch.nn.functional.interpolate(picture.movedim(-1, 1), size=(64, 64), mode="area").movedim(1, -1)[0]
    assert (shown - wanted).abs().mean() < 0.12


def encoded_picture() -> torch.Tensor:
    (picture,) = call("ContextAnyoneExamplePicture", picture=stack.PICTURE)
    with torch.inference_mode():
        return miniature()[2].encode(picture)


def check_the_memory_estimate_counts_references_and_cache():
    config = pack("contextanyone_core.config").ContextAnyoneConfig.wan_1_3b()
    options = pack("contextanyone_core.runtime.reference_cache").CacheOptions()
    model = mock.Mock(spec_set=["config", "cache_options", "get_dtype_inference"], config=config, cache_options=options)
    model.get_dtype_inference.return_value = torch.bfloat16
    estimate = pack("nodes._comfy.model").ContextAnyoneModel.memory_required
    shape, latents, tokens = [1, 16, 21, 60, 104], 16 * 60 * 104, 257 * 1280
    without = estimate(model, shape)
    one = estimate(model, shape, {"references": [[1, latents, tokens]]})
    two_branches = {"references": [[1, latents, tokens]] * 2}
    cache = (1560 * 4 + 257 * 2) * 1536 * 2 * 30
    assert cache < one - without < 1.1 * cache
    assert estimate(model, shape, two_branches) == one, "the branches share one cache"


def check_what_is_planned_with_is_what_runs():
    import comfy.sampler_helpers

    model, positive, _, latent = applied(pictures=(stack.PICTURE, stack.OTHER_VIEW), batch_size=2)
    conds = {"positive": comfy.sampler_helpers.convert_cond(positive)}
    shape = list(latent["samples"].shape)
    planned, _ = comfy.sampler_helpers.estimate_memory(model, shape, conds)
    seen = []
    kind = type(model.model)
    required = kind.memory_required

    def note(self, input_shape, cond_shapes=None):
        seen.append((input_shape[0], required(self, input_shape, cond_shapes)))
        return seen[-1][1]

    with (
        mock.patch.object(kind, "memory_required", note),
        mock.patch.object(type(model), "get_free_memory", return_value=1e15, create=True),
    ):
        ksampler(model, positive, positive, latent, steps=1)
    assert (4, planned) in seen, (planned, seen)
