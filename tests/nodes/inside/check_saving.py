"""What ComfyUI's own nodes save of a MODEL of ours loads as the same model, or is refused."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import folder_paths
import stack
import torch
from graph import Session, call, pack
from refusals import refusal
from safetensors.torch import load_file, save_file
from stack import applied, ksampler, miniature


def saved(model, node_id: str = "ModelSave", prefix: str = "saved", **parts) -> Path:
    """The file that a saving node leaves, in a folder of its own that ComfyUI takes for models/diffusion_models."""
    call(node_id, model=model, filename_prefix=prefix, **parts)
    (written,) = Path(folder_paths.get_output_directory()).glob(f"{prefix}_*.safetensors")
    folder = Path(tempfile.mkdtemp())
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    return Path(shutil.move(written, folder / f"{prefix}-{folder.name}.safetensors"))


def loaded(file: Path):
    return call("ContextAnyoneLoader", model_name=file.name, weight_dtype="default")[0]


def check_a_saved_model_is_the_same_model():
    own, clip, vae, _ = miniature()
    plain = ksampler(*applied())
    parts = {"clip": clip, "vae": vae}
    for again in (loaded(saved(own)), loaded(saved(own, "CheckpointSave", "whole", **parts))):
        assert again.model.config == own.model.config
        assert torch.equal(ksampler(*applied(again)), plain)


def check_a_saved_phantom_stays_one_under_any_name():
    path = pack("contextanyone_core.model_specs").MINIATURE / "phantom.safetensors"
    model = pack("nodes._comfy.loading").load_contextanyone(path)
    again = loaded(saved(model, prefix="other_name"))
    assert type(again.model) is type(model.model)
    assert again.model.config == model.model.config
    assert torch.equal(ksampler(*applied(again)), ksampler(*applied(model)))


def check_a_small_file_without_its_config_is_refused():
    """As ModelSave wrote it before the config travelled with the tensors."""
    file = saved(miniature()[0], prefix="bare")
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "contextanyone_header" not in name}, file)
    words = refusal(lambda: loaded(file))
    assert "its config is missing" in words, words
    assert "full size has 4096" in words
    assert str(file.parent) not in words, "no paths of the server's machine"


def check_a_saved_header_that_is_damaged_is_told():
    file = saved(miniature()[0], prefix="damaged")
    tensors = load_file(file)
    (name,) = (name for name in tensors if "contextanyone_header" in name)
    save_file(tensors | {name: tensors[name][:-3]}, file)
    assert "is damaged" in refusal(lambda: loaded(file))


def check_a_graph_saves_in_the_run():
    graph = {
        "1": {"class_type": "ContextAnyoneMiniatureLoader", "inputs": {}},
        "2": {"class_type": "ModelSave", "inputs": {"model": ["1", 0], "filename_prefix": "graph"}},
    }
    run = Session().run(graph)
    assert run.ok, run.problem
    assert stack.PICTURE
