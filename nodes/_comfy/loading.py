"""A weight file as a native MODEL; other files are refused by what they are, with the node that loads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.quant_ops
import comfy.utils
import folder_paths
import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.errors import CheckpointError, ContextAnyoneError
from ...contextanyone_core.model.transformer import ContextAnyoneTransformer
from ...contextanyone_core.model_specs import MODELS, ModelSpec
from ...contextanyone_core.weights.checkpoint import require_finite, transformer_config
from ...contextanyone_core.weights.comparison import compare, expected_tensors
from ...contextanyone_core.weights.locate import model_of
from ...contextanyone_core.weights.naming import IMAGE_ENCODER, LORA, TEXT_ENCODER, TRANSFORMER, VAE, WAN, plain_name
from ...contextanyone_core.weights.recognition import RUNS_HERE, Recognised
from ...contextanyone_core.weights.saved_header import HEADER
from ...contextanyone_core.weights.source import HOST_FORMATS, WeightSource, open_source
from .bernini import BerniniModel
from .model import ContextAnyoneModel, Storage, native_model
from .phantom import PhantomModel, RefAlignModel
from .types import Model

FOLDER = "diffusion_models"
WEIGHT_DTYPES = {
    "default": Storage(),
    "fp8_e4m3fn": Storage(torch.float8_e4m3fn),
    "fp8_e4m3fn_fast": Storage(torch.float8_e4m3fn, fp8_optimizations=True),
    "fp8_e5m2": Storage(torch.float8_e5m2),
}
_LOADED_BY = {
    VAE: "Load VAE",
    TEXT_ENCODER: "Load CLIP",
    IMAGE_ENCODER: "Load CLIP Vision",
    LORA: "Load LoRA",
    WAN: "Load Diffusion Model",
}


AUTO = "auto"
_CLASSES: dict[str, type[ContextAnyoneModel]] = {
    "wan": ContextAnyoneModel,
    "phantom": PhantomModel,
    "refalign": RefAlignModel,
    "bernini": BerniniModel,
}
MODEL_CHOICES = [AUTO, *_CLASSES]
"""What a file of Wan's tensors can be run as; `auto` follows the name of the file or its folder."""


def model_names() -> list[str]:
    """The files of `models/diffusion_models`, as ComfyUI lists them."""
    return list(folder_paths.get_filename_list(FOLDER))


def file_state(path: Path) -> tuple[int, int]:
    """Size and time of change of a file: a fingerprint, so that one written anew under its name is read again."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def model_path(name: str) -> Path:
    """Where a file of `models/diffusion_models` is.

    Raises:
        CheckpointError: it is no longer there.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise CheckpointError(f"{name} is no longer in models/{FOLDER}; put it back, or choose another file.")
    return Path(path)


def load_by_name(name: str, weight_dtype: str, model: str = AUTO) -> tuple[Model, str]:
    """MODEL of a file of `models/diffusion_models`, and what it is and can do, in words.

    Raises:
        CheckpointError: the file is gone, damaged, or of another kind; the message names the node that loads it.
    """
    path = model_path(name)
    with file_names_only(path):
        found = _open(path).recognised
        loaded = load_contextanyone(path, WEIGHT_DTYPES[weight_dtype], model)
        follows_poses = loaded.model.config.condition_dim > 0
        return loaded, _abilities(found, _chosen(found, model), follows_poses=follows_poses, named=model != AUTO)


def half_of_a_model(name: str) -> str:
    """What to tell of a file that is one of Wan 2.2's two experts, by its name; "" for others."""
    if not (half := _open(model_path(name)).recognised.half):
        return ""
    return (
        f"{half}. Load both, each with its own Apply ContextAnyone, and sample with two KSampler (Advanced), the "
        "high-noise one first."
    )


@contextmanager
def file_names_only(path: Path) -> Iterator[None]:
    """Errors within name the file without its folder, which is the server's and means nothing to the user."""
    try:
        yield
    except ContextAnyoneError as error:
        raise type(error)(str(error).replace(f"{path.parent}{os.sep}", "")) from None


def load_contextanyone(
    path: Path, storage: Storage | None = None, model: str = AUTO, *, disable_dynamic: bool = False
) -> Model:
    """MODEL of a transformer file: ours, Wan 2.1 T2V or a model with its tensors, in any of their public forms.

    Args:
        path: the file.
        storage: how the weights are kept.
        model: one of `MODEL_CHOICES`.
        disable_dynamic: without weight streaming.

    Raises:
        CheckpointError: another kind of file, one that does not fit its own config, or ours with a model named.
    """
    source = _open(path)
    spec = _chosen(source.recognised, model)
    config = spec.own_config(transformer_config(source, plain=True))
    _require_all(source, config)
    storage = storage or Storage()
    tensors, quantization = _tensors(source)
    require_finite(path, tensors)
    if quantization:
        storage = Storage(storage.dtype, storage.fp8_optimizations, quantization)
    model_class = _CLASSES.get(spec.name, ContextAnyoneModel)
    patcher: Model = native_model(config, tensors, storage, model_class=model_class, disable_dynamic=disable_dynamic)
    patcher.cached_patcher_init = (load_contextanyone, (path, storage, model))
    return patcher


def _open(path: Path) -> WeightSource:
    source = open_source(path, host_layers=True)
    found = source.recognised
    if found.kind == TRANSFORMER or (found.kind == WAN and found.family.startswith(RUNS_HERE)):
        return source
    if found.shard:
        raise CheckpointError(
            f"{path.name} is one shard of several, and ComfyUI loads whole files: take the model's single file, or "
            "make one of the shards' folder by contextanyone convert (docs/WEIGHTS.md)."
        )
    node = _LOADED_BY.get(found.kind or "", "Load Diffusion Model or Load Checkpoint")
    raise CheckpointError(
        f"{path.name} is {found}, no ContextAnyone transformer. {node} loads such files, if ComfyUI knows them."
    )


def _require_all(source: WeightSource, config: ContextAnyoneConfig) -> None:
    expected = expected_tensors(ContextAnyoneTransformer(config, device="meta"))
    if found := compare(expected, source.tensors, source.unknown):
        raise CheckpointError(f"{source.path.name} is {source.recognised} and not whole: {found}. Download it again.")


def _tensors(source: WeightSource) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights by Wan's names, and ComfyUI's own description of quantised ones, which its layers compute with."""
    _require_layers(source)
    if not _as_comfyui_has_it(source):
        return {name: source.read(name) for name in source.tensors}, None
    stored, metadata = comfy.utils.load_torch_file(str(source.path), safe_load=True, return_metadata=True)
    stored = {plain_name(name): tensor for name, tensor in stored.items()}
    prefix = next((name.removesuffix("head.modulation") for name in stored if name.endswith("head.modulation")), "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    tensors.pop(HEADER, None)
    tensors, _ = comfy.utils.convert_old_quants(tensors, "", metadata=metadata)
    return tensors, comfy.utils.detect_layer_quantization(tensors, "")


def _as_comfyui_has_it(source: WeightSource) -> bool:
    """Whether a file has the form and the names that ComfyUI's own loader reads."""
    return source.recognised.form == "safetensors" and source.recognised.naming in ("original", "ComfyUI")


def _require_layers(source: WeightSource) -> None:
    """Refuse a quantisation that this ComfyUI's layers do not have, or that is packed under other names."""
    name, packed = source.path.name, sorted(source.formats & set(HOST_FORMATS))
    if new := sorted(source.formats - comfy.quant_ops.QUANT_ALGOS.keys()):
        raise CheckpointError(
            f"{name} is quantised as {', '.join(new)}, which this ComfyUI's layers do not have; update ComfyUI."
        )
    if packed and not _as_comfyui_has_it(source):
        raise CheckpointError(
            f"{name} is quantised as {', '.join(packed)} ({source.recognised}); in that form one safetensors file with "
            "Wan's own names is needed. Use such a file, or one in bf16, fp16 or fp8."
        )


def _chosen(found: Recognised, model: str) -> ModelSpec:
    """The model that a file is run as."""
    if model == AUTO:
        return model_of(found)
    if found.kind == TRANSFORMER:
        raise CheckpointError(f"{found.path.name} is {found}, and model is {model}; choose auto: it says what it is.")
    return MODELS[model]


def _abilities(found: Recognised, spec: ModelSpec, *, follows_poses: bool, named: bool) -> str:
    """A sentence on what a file is and what it can do; `named` is whether the user chose the model, not `auto`."""
    if found.kind == TRANSFORMER:
        return f"{found}: follows reference pictures{', poses and a start frame' if follows_poses else ''}."
    if spec.references:
        way = f"follows reference pictures, in {spec.title}'s way. It has no emphasis, no gap and no CLIP branch"
        return f"{found}: {way}{'; subjects should be cut out on white' if spec.cut_out else ''}."
    can = "follows poses and a start frame" if follows_poses else "plain text to video"
    certain = named or follows_poses  # the others have plain Wan's tensors, without channels for a pose
    assumed = "" if certain else " No name says otherwise: if it is Phantom, RefAlign or Bernini, choose that at model."
    return f"{found}: {can}. It was not trained to follow reference pictures.{assumed}"
