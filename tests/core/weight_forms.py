"""Wan's transformer written in every public form, for the tests of reading them."""

import json
import re
from functools import partial

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from contextanyone_core.weights.name_tables import rename, transformer_table

FP8 = torch.float8_e4m3fn


def is_matrix(name, tensor):
    return tensor.ndim == 2 and name.startswith("blocks.")


def original_pth(state, folder):
    torch.save(state, folder / "Wan2.1-T2V.pth")
    return folder / "Wan2.1-T2V.pth"


def nested_pth(state, folder):
    views = {name: torch.stack((tensor, tensor))[1] for name, tensor in state.items()}  # storages with an offset
    views["head.head.weight"] = state["head.head.weight"].T.contiguous().T
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in views.items()}
    torch.save({"state_dict": parameters, "step": 3}, folder / "model.pth")
    return folder / "model.pth"


def one_file(state, folder, prefix="", name="diffusion_pytorch_model.safetensors", metadata=None):
    save_file({prefix + key: tensor.contiguous() for key, tensor in state.items()}, folder / name, metadata=metadata)
    return folder / name


def shards(state, folder):
    names, weight_map = sorted(state), {}
    for index in range(3):
        file = f"diffusion_pytorch_model-{index + 1:05}-of-00003.safetensors"
        save_file({name: state[name] for name in names[index::3]}, folder / file)
        weight_map |= dict.fromkeys(names[index::3], file)
    index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index_file


def fp8(state, folder):
    return one_file({k: v.to(FP8 if is_matrix(k, v) else torch.bfloat16) for k, v in state.items()}, folder)


def scaled(state, folder, weight, extra, prefix="", metadata=None):
    stored = {}
    for name, tensor in state.items():
        stored[name] = tensor.bfloat16()
        if is_matrix(name, tensor):
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(FP8)
            layer = name.removesuffix(".weight")
            stored |= {f"{layer}.{weight}": scale.clone()} | extra(layer)
    if weight == "scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return one_file(stored, folder, prefix, metadata=metadata)


def scaled_old(state, folder):
    return scaled(state, folder, "scale_weight", lambda layer: {f"{layer}.scale_input": torch.ones(())})


def scaled_new(state, folder):
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    return scaled(
        state,
        folder,
        "weight_scale",
        lambda layer: {f"{layer}.comfy_quant": note.clone(), f"{layer}.input_scale": torch.ones(())},
        "model.diffusion_model.",
    )


def scaled_by_header(state, folder):
    layers = {k.removesuffix(".weight"): {"format": "float8_e4m3fn"} for k, v in state.items() if is_matrix(k, v)}
    note = json.dumps({"format_version": "1.0", "layers": layers})
    return scaled(state, folder, "weight_scale", lambda layer: {}, metadata={"_quantization_metadata": note})


def as_gguf(state, folder, kind=gguf.GGMLQuantizationType.Q8_0, flatten=False):
    path = folder / "wan2.1-t2v-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array("tokenizer.list", [f"piece {index}" for index in range(50)])
    for name, tensor in state.items():
        values = tensor.numpy()
        if is_matrix(name, tensor):
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        elif flatten and values.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            writer.add_tensor(name, values.reshape(values.shape[0], -1).astype(np.float16))
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def without_five_sides(state, folder):
    """As programs write it that do not know ComfyUI's note of the shape: ggml's four sides."""
    return as_gguf(
        {name: tensor.flatten(0, 1) if tensor.ndim > 4 else tensor for name, tensor in state.items()}, folder
    )


def wrapped(state, folder):
    """torch.compile of each block, inside FSDP, inside DDP."""
    names = {
        name: re.sub(r"^(blocks\.\d+\.)", r"\1_orig_mod.", name).replace(".ffn.", ".ffn._fsdp_wrapped_module.")
        for name in state
    }
    return one_file({names[name]: tensor for name, tensor in state.items()}, folder, "module._fsdp_wrapped_module.")


def nested(*keys):
    def write(state, folder):
        content = state
        for key in reversed(keys):
            content = {key: content, "step": 7, "optimizer": {"state": {"a": {"exp_avg": torch.ones(2)}}}}
        torch.save(content, folder / "nested.pth")
        return folder / "nested.pth"

    return write


def diffusers_folder(state, folder):
    save_file(
        {k: v.contiguous() for k, v in rename(state, transformer_table(2)).items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    (folder / "config.json").write_text("{}")
    return folder


FORMS = {
    "original .pth": (original_pth, "original", "", 0),
    "a .pth with views and parameters": (nested_pth, "original", "", 0),
    "safetensors": (one_file, "original", "", 0),
    "shards": (shards, "original", "", 0),
    "a folder of shards": (lambda *given: shards(*given).parent, "original", "", 0),
    "ComfyUI": (lambda *given: one_file(*given, "model.diffusion_model."), "ComfyUI", "", 0),
    "ComfyUI, short prefix": (lambda *given: one_file(*given, "diffusion_model."), "ComfyUI", "", 0),
    "fp8": (fp8, "original", "fp8_e4m3fn", 0.04),
    "scaled fp8, older": (scaled_old, "original", "scaled fp8", 0.04),
    "scaled fp8, newer": (scaled_new, "ComfyUI", "scaled fp8", 0.04),
    "scaled fp8, by header": (scaled_by_header, "original", "scaled fp8", 0.04),
    "GGUF": (as_gguf, "original", "GGUF Q8_0", 0.02),
    "GGUF with a kept shape": (lambda *given: as_gguf(*given, flatten=True), "original", "GGUF Q8_0", 0.02),
    "GGUF in four bits": (
        lambda *given: as_gguf(*given, gguf.GGMLQuantizationType.Q4_0),
        "original",
        "GGUF Q4_0",
        0.2,
    ),
    "diffusers folder": (diffusers_folder, "diffusers", "", 0),
    "GGUF with four sides": (without_five_sides, "original", "GGUF Q8_0", 0.02),
    "compiled, FSDP and DDP": (wrapped, "original", "", 0),
    **{
        f"prefix {prefix}": (partial(one_file, prefix=prefix), "original", "", 0)
        for prefix in ("module.", "_orig_mod.", "model.", "transformer.", "_fsdp_wrapped_module.", "module.model.")
    },
    "a .pth under generator_ema": (nested("generator_ema"), "original", "", 0),
    "a .pth two keys down": (nested("state", "ema"), "original", "", 0),
}
