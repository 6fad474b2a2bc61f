"""Transformer files in the forms that are found on artists' disks give the same MODEL."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import folder_paths
import torch
from graph import call, pack
from safetensors.torch import save_file
from stack import ksampler, largest


def small(**changed):
    """Weights and config of a small transformer at Wan's text width, with random values everywhere."""
    import dataclasses

    base = pack("contextanyone_core.config").ContextAnyoneConfig.wan_1_3b()
    sizes = {"dim": 256, "ffn_dim": 64, "num_heads": 2, "num_layers": 2}
    config = dataclasses.replace(base, **sizes | changed)
    torch.manual_seed(4)
    network = pack("contextanyone_core.model.transformer").ContextAnyoneTransformer(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return config, {name: tensor.half() for name, tensor in network.state_dict().items()}


def model_of(tensors, metadata=None, suffix=".safetensors"):
    folder = Path(tempfile.mkdtemp())
    path = folder / f"model-{len(tensors)}-{id(tensors)}{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    return call("ContextAnyoneLoader", model_name=path.name, weight_dtype="default")[0]


def latents(model):
    torch.manual_seed(9)
    text = [[torch.nn.functional.pad(torch.randn(1, 6, 4096), (0, 0, 0, 506)), {}] for _ in range(2)]
    return ksampler(model, text[:1], text[1:], {"samples": torch.zeros(1, 16, 2, 6, 8)}, steps=2)


def ours_metadata(config):
    return {"format": "pt", "kind": "contextanyone-transformer", "config": json.dumps(config.to_dict())}


def check_our_file_with_and_without_comfyui_prefixes():
    config, tensors = small()
    plain = latents(model_of(tensors, ours_metadata(config)))
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        named = {prefix + name: tensor for name, tensor in tensors.items()}
        assert torch.equal(latents(model_of(named, ours_metadata(config))), plain), prefix


def check_a_file_of_a_wrapped_model():
    """As trainers save it: DDP around all, torch.compile in each block."""
    config, tensors = small()
    plain = latents(model_of(tensors, ours_metadata(config)))
    blocks = (name.partition("blocks.0.") for name in tensors)
    names = [f"{before}blocks.0._orig_mod.{after}" if block else before for before, block, after in blocks]
    named = {f"module.{name}": tensor for name, tensor in zip(names, tensors.values(), strict=True)}
    assert torch.equal(latents(model_of(named, ours_metadata(config))), plain)


def check_a_plain_wan_file_loads_as_safetensors_and_pth():
    _, tensors = small(image_dim=None, emphasize=False)
    safe = latents(model_of(tensors))
    assert torch.equal(latents(model_of(tensors, suffix=".pth")), safe)


def check_scaled_fp8_files_of_both_generations_load():
    _, tensors = small(image_dim=None, emphasize=False)
    full = latents(model_of(tensors))
    layers = [
        name.removesuffix(".weight") for name in tensors if name.endswith((".q.weight", ".k.weight", ".0.weight"))
    ]
    layers = [name for name in layers if name.startswith("blocks.") and tensors[f"{name}.weight"].ndim == 2]
    old, new = dict(tensors), dict(tensors)
    for name in layers:
        weight = tensors[f"{name}.weight"].float()
        scale = weight.abs().max() / 448
        packed = (weight / scale).to(torch.float8_e4m3fn)
        old |= {f"{name}.weight": packed, f"{name}.scale_weight": scale.clone()}
        kind = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
        new |= {f"{name}.weight": packed, f"{name}.weight_scale": scale.clone(), f"{name}.comfy_quant": kind}
    old["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in new.items()}
    for form in (old, new, prefixed):
        coarse = latents(model_of(form))
        correlation = torch.corrcoef(torch.stack([full.flatten(), coarse.flatten()]))[0, 1]
        assert correlation > 0.95, correlation
        assert largest(coarse - full) > 0


PACKED = {
    "int8_tensorwise": {"is_weight": True, "per_channel": True, "convrot": True, "convrot_groupsize": 256},
    "nvfp4": {},
    "mxfp8": {},
}


def packed_file(form: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file as ComfyUI's releases have it: every square matrix of the blocks by ComfyUI's own packer."""
    import comfy.quant_ops

    layout = comfy.quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
    note = {"format": form} | ({"convrot": True, "convrot_groupsize": 256} if form == "int8_tensorwise" else {})
    made = dict(tensors)
    for name in [key for key in tensors if key.startswith("blocks.") and tuple(tensors[key].shape) == (256, 256)]:
        packed = comfy.quant_ops.QuantizedTensor.from_float(tensors[name].bfloat16(), layout, **PACKED[form])
        made |= {key: tensor.contiguous() for key, tensor in packed.state_dict(name).items()}
        made[name.replace(".weight", ".comfy_quant")] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    return made


def check_files_as_cores_releases_ship_them_load():
    import comfy.quant_ops

    _, tensors = small(image_dim=None, emphasize=False)
    full = latents(model_of(tensors))
    for form in PACKED:
        if form not in comfy.quant_ops.QUANT_ALGOS:
            continue  # this ComfyUI has no such layers
        made = packed_file(form, tensors)
        for prefix in ("", "model.diffusion_model."):
            model = model_of({prefix + name: tensor for name, tensor in made.items()})
            weight = model.model.diffusion_model.blocks[0].self_attn.q.weight
            assert isinstance(weight, comfy.quant_ops.QuantizedTensor), form
            coarse = latents(model)
            correlation = torch.corrcoef(torch.stack([full.flatten(), coarse.flatten()]))[0, 1]
            assert correlation > 0.95, (form, correlation)
            assert largest(coarse - full) > 0, form


def check_a_packing_that_no_layer_has_is_told():
    _, tensors = small(image_dim=None, emphasize=False)
    note = torch.tensor(list(json.dumps({"format": "int3_future"}).encode()), dtype=torch.uint8)
    try:
        model_of(tensors | {"blocks.0.self_attn.q.comfy_quant": note})
    except pack("contextanyone_core.errors").CheckpointError as error:
        problem = str(error)
    else:
        problem = "it loaded"
    assert "is quantised as int3_future, which is not read here" in problem, problem


def check_plain_fp8_stays_fp8_where_asked():
    _, tensors = small(image_dim=None, emphasize=False)
    model = model_of(tensors)
    name = Path(folder_paths.get_folder_paths("diffusion_models")[-1])
    (file,) = name.iterdir()
    (small_model,) = call("ContextAnyoneLoader", model_name=file.name, weight_dtype="fp8_e4m3fn")
    assert small_model.model.diffusion_model.blocks[0].self_attn.q.weight.dtype == torch.float8_e4m3fn
    assert model.model.diffusion_model.blocks[0].self_attn.q.weight.dtype != torch.float8_e4m3fn


def check_a_model_says_what_it_can_do():
    loading = pack("nodes._comfy.loading")
    _, tensors = small(image_dim=None, emphasize=False)
    model_of(tensors)
    folder = Path(folder_paths.get_folder_paths("diffusion_models")[-1])
    (file,) = folder.iterdir()
    _, words = loading.load_by_name(file.name, "default")
    assert "plain text to video" in words
