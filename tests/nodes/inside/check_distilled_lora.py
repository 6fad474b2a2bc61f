"""Step-distilled LoRAs of Wan 2.1 1.3B (CausVid, LightX2V, FastWan) on the public reference models: no key is left."""

from __future__ import annotations

import logging
from typing import Any
from unittest import mock

import check_patches as patches
import folder_paths
import torch
from graph import call
from stack import ksampler, largest

RANK = 2
FORMS = {
    "ComfyUI's": ("diffusion_model.{}", "lora_A", "lora_B"),
    "CausVid's and LightX2V's": ("diffusion_model.{}", "lora_down", "lora_up"),
    "musubi-tuner's": ("lora_unet_{}", "lora_down", "lora_up"),
    "VideoX-Fun's": ("lora_unet__{}", "lora_down", "lora_up"),
}


def weights_of(network: Any, form: str) -> dict[str, torch.Tensor]:
    """A LoRA of every linear layer and the patch embedding, in two of the forms of biases and norms too."""
    name, down, up = FORMS[form]
    flat = name.startswith("lora_unet")
    generator, found = torch.Generator().manual_seed(3), {}
    for path, layer in network.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        key = name.format(path.replace(".", "_") if flat else path)
        if weight.ndim == 1 and not flat:
            found[f"{key}.diff"] = torch.randn(weight.shape, generator=generator) * 0.01
        if weight.ndim > 1:
            found[f"{key}.{down}.weight"] = torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.02
            ones = [1] * (weight.ndim - 2)
            found[f"{key}.{up}.weight"] = torch.randn(weight.shape[0], RANK, *ones, generator=generator) * 0.02
            found[f"{key}.alpha"] = torch.tensor(float(RANK))
        if getattr(layer, "bias", None) is not None and not flat:
            found[f"{key}.diff_b"] = torch.randn(layer.bias.shape, generator=generator) * 0.01
    return found


def loaded(model: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, list[str]]:
    """The patched MODEL, and what ComfyUI said of the LoRA."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        with (
            mock.patch("comfy.utils.load_torch_file", side_effect=lambda *_, **a: patches.answer(weights, a)),
            mock.patch.object(folder_paths, "get_full_path_or_raise", return_value="lora.safetensors"),
        ):
            patched = call("LoraLoaderModelOnly", model=model, lora_name="lora.safetensors", strength_model=1.0)[0]
    finally:
        logging.getLogger().removeHandler(handler)
    return patched, [text for text in records if "lora" in text.lower()]


def check_every_form_is_loaded_whole():
    for name in ("phantom", "refalign", "bernini"):
        model = patches.graph(name)[0]
        layers = [layer for layer in model.model.diffusion_model.modules() if hasattr(layer, "weight")]
        linear = sum(layer.weight is not None and layer.weight.ndim > 1 for layer in layers)
        for form in FORMS:
            patched, said = loaded(model, weights_of(model.model.diffusion_model, form))
            assert said == [], (name, form, said[:3])
            assert len(patched.patches) >= linear, (name, form)


def check_few_steps_with_an_interval_run_and_change():
    scales = {"guidance_scale": 4.0, "reference_scale": 0.0, "guidance_low": 0.9, "guidance_high": 1.0}
    for name in ("refalign", "bernini"):
        model, positive, negative, latent = patches.graph(name)
        patched, _ = loaded(model, weights_of(model.model.diffusion_model, "CausVid's and LightX2V's"))
        network = type(model.model.diffusion_model)
        (guider,) = call("ContextAnyoneGuider", model=patched, positive=positive, negative=negative, **scales)
        (noise,), (sampler,) = call("RandomNoise", noise_seed=7), call("KSamplerSelect", sampler_name="euler")
        (sigmas,) = call("BasicScheduler", model=patched, scheduler="simple", steps=4, denoise=1.0)
        given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
        with mock.patch.object(network, "_velocity", autospec=True, side_effect=network._velocity) as calls:
            fast = call("SamplerCustomAdvanced", **given)[0]["samples"]
        alone = int((sigmas[:-1] < 0.9).sum())
        batches = [len(one.args[1]) for one in calls.call_args_list]
        assert batches[-alone:] == [1] * alone, (name, batches)
        assert sum(batches) > 4, (name, batches)
        assert bool(torch.isfinite(fast).all())
        assert largest(fast - ksampler(model, positive, negative, latent, steps=4)) > 0.01
