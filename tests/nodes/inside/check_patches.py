"""What core patches into a MODEL reaches our blocks, on every model: attention, windows, caches, LoRAs, compilers."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import check_bernini as small
import folder_paths
import stack
import torch
from graph import call, needed, node, pack
from stack import ksampler, largest

FILES = {
    "phantom": "Phantom-Wan-tiny.safetensors",
    "refalign": small.REFALIGN,
    "bernini": "bernini_r_1.3B.safetensors",
}
MODELS = ("contextanyone", *FILES)


@functools.cache
def graph(name: str, length: int = 5) -> tuple[Any, Any, Any, Any]:
    """MODEL, positive, negative and latent with one reference."""
    if name == "contextanyone":
        return stack.applied(length=length)
    with mock.patch.dict(small.SIZE, length=length):
        return small.applied(small.load(FILES[name]), small.images()[:1])


def run(name: str, patch: Any = None, length: int = 5, steps: int = 1) -> torch.Tensor:
    """Latents, of a patched clone if there is a patch."""
    model, positive, negative, latent = graph(name, length)
    return ksampler(model if patch is None else patch(model), positive, negative, latent, steps=steps)


@functools.cache
def plain(name: str) -> torch.Tensor:
    return run(name)


def blocks_of(name: str) -> int:
    return len(graph(name)[0].model.diffusion_model.blocks)


def overridden(override: Any) -> Any:
    """A patch as ModelAttentionBackend and its like make it."""

    def patch(model: Any) -> Any:
        patched = model.clone()
        patched.model_options["transformer_options"]["optimized_attention_override"] = override
        return patched

    return patch


def check_an_attention_override_replaces_every_attention():
    for name in MODELS:
        seen = []

        def exact(function: Any, q: Any, k: Any, v: Any, heads: int, *arguments: Any, seen=seen, **given: Any) -> Any:
            seen.append((q.shape[1], k.shape[1]))
            assert given["transformer_options"]["sigmas"].numel() >= 1, "sparse attention goes by the noise level"
            return function(q, k, v, heads, *arguments, **given)

        assert torch.equal(run(name, overridden(exact)), plain(name)), name
        video = max(tokens for tokens, _ in seen)
        own = [pair for pair in seen if pair[0] == video and pair[1] >= video]
        assert len(own) >= blocks_of(name), (name, "self-attention of each block goes through the override")


def check_int8_and_sparse_attention_reach_the_blocks():
    def in_int8(function: Any, q: Any, k: Any, v: Any, heads: int, *arguments: Any, **given: Any) -> Any:
        scale = k.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
        return function(q, (k / scale).round() * scale, v, heads, *arguments, **given)

    def sparse(function: Any, q: Any, k: Any, v: Any, heads: int, *arguments: Any, **given: Any) -> Any:
        kept = max(1, 3 * k.shape[1] // 4)
        return function(q, k[:, :kept], v[:, :kept], heads, *arguments, **given)

    for name in MODELS:
        near, far = (largest(run(name, overridden(kernel)) - plain(name)) for kernel in (in_int8, sparse))
        assert 0 < near < far, (name, near, far)


def check_core_s_own_attention_node_reaches_every_block():
    needed("ModelAttentionBackend")
    attention = __import__("comfy.ldm.modules.attention", fromlist=["attention"])
    other, calls = attention.get_attention_function("sub_quad"), []

    def counted(*arguments: Any, **given: Any) -> Any:
        calls.append(arguments[0].shape)
        return other(*arguments, **given)

    for name in MODELS:
        calls.clear()
        with mock.patch.dict(attention.REGISTERED_ATTENTION_FUNCTIONS, pytorch=counted):
            found = run(name, lambda one: call("ModelAttentionBackend", model=one, attention="pytorch attention")[0])
        assert len(calls) >= 2 * blocks_of(name), name
        assert largest(found - plain(name)) < 1e-4 * largest(plain(name)), name


def check_a_registered_backend_is_looked_up_at_every_call():
    attention = __import__("comfy.ldm.modules.attention", fromlist=["attention"])
    before, calls = attention.optimized_attention, []

    def sage(*arguments: Any, **given: Any) -> Any:
        calls.append(arguments[0].shape)
        return before(*arguments, **given)

    for name in MODELS:
        calls.clear()
        with mock.patch.object(attention, "optimized_attention", sage):
            assert torch.equal(run(name), plain(name)), name
        assert len(calls) >= 2 * blocks_of(name), name


def check_context_windows_keep_the_references():
    needed("ContextWindowsManual")
    windows = {
        "context_length": 3, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False, "cond_retain_index_list": "",
        "split_conds_to_windows": False, "latent_retain_index_list": "", "causal_window_fix": False,
    }  # fmt: skip
    known = {taken.id for taken in node("ContextWindowsManual").GET_SCHEMA().inputs}  # newer ones have more
    windows = {name: value for name, value in windows.items() if name in known}
    for name in MODELS:
        network, seen = type(graph(name)[0].model.diffusion_model), []
        velocity = network._velocity

        def note(self, x, *arguments, velocity=velocity, seen=seen, **given):
            shown = given.get("references")  # our own negative pass has none
            seen.append((x.shape[2], None if shown is None else [tuple(item.shape) for item in shown.inputs.latents]))
            return velocity(self, x, *arguments, **given)

        with mock.patch.object(network, "_velocity", note):
            found = run(name, lambda model: call("ContextWindowsManual", model=model, **windows)[0], length=17)
        whole = [tuple(item.shape) for item in references_of(name)]
        assert found.shape[2] == 5, name
        assert {frames for frames, _ in seen} == {3}, (name, seen)
        assert whole in [shapes for _, shapes in seen], (name, seen)
        assert all(shapes in (whole, None) for _, shapes in seen if name == "contextanyone"), seen
        assert all(shapes == whole for _, shapes in seen if name != "contextanyone"), (name, seen)


def references_of(name: str) -> Any:
    _, positive, _, _ = graph(name, 17)
    return positive[0][1]["contextanyone_references"].latents


def check_easycache_and_its_successors_skip_steps():
    caches = {
        "EasyCache": {"reuse_threshold": 1.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False},
        "LazyCache": {"reuse_threshold": 1.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False},
    }
    for node_id, settings in caches.items():
        needed(node_id)
        for name in FILES:  # our own model with EasyCache: check_native
            network = type(graph(name)[0].model.diffusion_model)
            with mock.patch.object(network, "_velocity", autospec=True, side_effect=network._velocity) as calls:
                run(name, lambda model, n=node_id, s=settings: call(n, model=model, **s)[0], steps=6)
            assert 0 < calls.call_count < 6 * (2 if calls.call_args is None else passes(name)), (node_id, name)


def passes(name: str) -> int:
    """Calls of the network in a step of KSampler: passes whose conditionings are alike share one."""
    network = type(graph(name)[0].model.diffusion_model)
    with mock.patch.object(network, "_velocity", autospec=True, side_effect=network._velocity) as calls:
        run(name, steps=1)
    return calls.call_count


def lora(name: str, form: str, strength: float) -> Any:
    """A patch: a random LoRA on two layers, merged or in bypass."""
    node_id = {"merged": "LoraLoaderModelOnly", "bypass": "LoraLoaderBypassModelOnly"}[form]
    needed(node_id)
    dim = graph(name)[0].model.config.dim
    generator, weights = torch.Generator().manual_seed(5), {}
    for layer in ("self_attn.q", "cross_attn.o"):
        key = f"diffusion_model.blocks.0.{layer}"
        weights[f"{key}.lora_A.weight"] = torch.randn(2, dim, generator=generator) * 0.1
        weights[f"{key}.lora_B.weight"] = torch.randn(dim, 2, generator=generator) * 0.1

    def patch(model: Any) -> Any:
        with (
            mock.patch("comfy.utils.load_torch_file", side_effect=lambda *_, **asked: answer(weights, asked)),
            mock.patch.object(folder_paths, "get_full_path_or_raise", return_value="lora.safetensors"),
        ):
            return call(node_id, model=model, lora_name="lora.safetensors", strength_model=strength)[0]

    return patch


def answer(weights: Any, asked: Any) -> Any:
    return (dict(weights), {}) if asked.get("return_metadata") else dict(weights)


def check_a_bypass_lora_does_what_a_merged_one_does():
    for name in MODELS:
        merged, bypass = (run(name, lora(name, form, 1.0)) for form in ("merged", "bypass"))
        assert largest(merged - plain(name)) > 1e-4, name
        assert largest(merged - bypass) < 1e-3 * largest(merged), (name, largest(merged - bypass))
        assert torch.equal(run(name), plain(name)), "it leaves without a trace"


def check_without_weight_streaming_it_is_the_same_model():
    """What core asks for before it compiles a model, or puts it on a second card."""
    for name, file in FILES.items():
        model = small.load(file)
        make, arguments = model.cached_patcher_init
        again = make(*arguments, disable_dynamic=True)
        assert type(again.model) is type(model.model), name
        _, positive, negative, latent = graph(name)
        assert torch.equal(ksampler(again, positive, negative, latent, steps=1), plain(name)), name


def check_layers_are_core_s_own_so_that_weights_can_stream():
    for name in MODELS:
        network = graph(name)[0].model.diffusion_model
        bare = [
            path
            for path, layer in network.named_modules()
            if next(layer.parameters(recurse=False), None) is not None
            and not hasattr(layer, "comfy_cast_weights")
            and type(layer).__name__ not in ("TransformerBlock", "Head")
        ]
        assert bare == [], (name, bare)
    assert pack("nodes._comfy.model").ContextAnyoneModel
