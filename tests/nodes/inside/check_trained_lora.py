"""What training/export.py writes of a LoRA, through LoraLoaderModelOnly: the network with the LoRA merged."""

from __future__ import annotations

import shutil
from pathlib import Path

import comfy.lora
import comfy.utils
import folder_paths
import graph
from graph import call
from stack import applied, ksampler, largest, miniature

# Updates are added to the loaded weights in their own dtype.
TOLERANCE = 2e-2


def place(kind: str, name: str) -> str:
    """Copy a prepared file to where ComfyUI looks for its kind."""
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(graph.DATA / name, folder / name)
    return name


def check_the_lora_gives_the_merged_network():
    name = place("loras", "trained_lora.safetensors")
    (patched,) = call("LoraLoaderModelOnly", model=miniature()[0], lora_name=name, strength_model=1.0)
    merged = place("diffusion_models", "trained_merged.safetensors")
    (whole,) = call("ContextAnyoneLoader", model_name=merged, weight_dtype="default")
    plain, with_lora, expected = (ksampler(*applied(model)) for model in (miniature()[0], patched, whole))
    scale = largest(expected - plain)
    assert scale > 0.1, scale
    assert largest(with_lora - expected) < TOLERANCE * max(1.0, scale), (largest(with_lora - expected), scale)


def check_every_key_is_used():
    weights = comfy.utils.load_torch_file(str(graph.DATA / "trained_lora.safetensors"))
    patcher = miniature()[0]
    places = comfy.lora.model_lora_keys_unet(patcher.model, {})
    found = comfy.lora.load_lora(weights, places)
    low_rank = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    differences = [key for key in weights if key.endswith((".diff", ".diff_b"))]
    assert len(found) == len(low_rank) + len(differences), (len(found), len(low_rank), len(differences))
