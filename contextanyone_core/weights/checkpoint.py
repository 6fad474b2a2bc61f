"""This project's weight files: safetensors with the config in the header, written atomically and loaded strictly.

The header's metadata always has `format` ("pt"), `kind` and `config` (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config import ContextAnyoneConfig
from ..errors import CheckpointError, InputError
from ..model.attention import AttentionFunction, torch_attention
from ..model.transformer import ContextAnyoneTransformer
from .comparison import Differences, compare, expected_tensors, listed
from .naming import TRANSFORMER, WAN
from .recognition import FUN_V1_1, RUNS_HERE, Recognised, recognise
from .safetensors_file import read_header
from .source import WeightSource, open_source
from .tensors import INTEGERS, TensorInfo, is_finite
from .writer import NAMES, write_streamed


@dataclass(frozen=True)
class Description:
    """What `contextanyone inspect` reports about a weight file.

    `differences` compares the tensors with the config: the header's, or for Wan's public files the one inferred from
    the shapes. It is None if the file is not a transformer.
    """

    path: Path
    recognised: Recognised
    size_bytes: int
    parameters: int
    config: dict[str, Any]
    metadata: dict[str, str]
    differences: Differences | None = None


def save_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    config: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` atomically, with `kind`, `config` and `extra` in the header.

    A mapping that makes its tensors (`OnDemand`) is asked for each one twice: for its size, then for its values.

    Raises:
        CheckpointError: the folder does not exist, or `extra` would replace a reserved key.
        OSError: the disk is full or the folder read-only; nothing is left behind.
    """
    plan = {name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_streamed(Path(path), plan, lambda name: tensors[name].detach().cpu(), _metadata(kind, config, extra))


def _metadata(kind: str, config: Mapping[str, Any], extra: Mapping[str, str] | None) -> dict[str, str]:
    metadata = {"format": "pt", "kind": kind, "config": json.dumps(dict(config), sort_keys=True)}
    if extra and (taken := sorted(metadata.keys() & extra.keys())):
        raise CheckpointError(f"{', '.join(taken)} are reserved names in a weight file's header; use others in extra.")
    return metadata | dict(extra or {})


def load_tensors(path: str | Path, *, kind: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU and in the stored dtype; `kind` None accepts a file of any kind.

    Raises:
        CheckpointError: as `read_header`, or the file is of another kind.
    """
    read_header(path)
    if kind is not None:
        require_kind(recognise(path), kind)
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def require_kind(found: Recognised, kind: str) -> None:
    """Check the kind of a file, which its header states or its tensor names imply.

    Raises:
        CheckpointError: the file is of another kind, or of an unknown one.
    """
    if found.kind != kind:
        given = f"a {found.kind} file" if found.stated else f"by its tensor names {found}"
        raise CheckpointError(f"{found.path} is {given}; a {kind} file is needed here.")


def require_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinite values.

    Raises:
        CheckpointError: names the first tensors that hold such values.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    _refuse_values(path, bad)


def load_transformer(
    path: str | Path,
    *,
    ops: Any = torch.nn,
    attention: AttentionFunction = torch_attention,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    plain: bool = False,
) -> ContextAnyoneTransformer:
    """Build the transformer that a file describes and load its weights; every name and shape is checked.

    Reads our files in any naming, with the config in the header, and Wan's and Phantom's public files (.pth,
    safetensors, single or sharded, ComfyUI's prefixes, fp8 and scaled fp8, GGUF, diffusers folders), whose config
    is inferred from the shapes.

    Args:
        path: a weight file, an index of shards, or a folder with one model.
        ops, attention: as in `ContextAnyoneTransformer`.
        dtype: dtype of the weights in memory; None keeps the file's dtype, or bf16 for fp8 and GGUF.
        device: device of the weights.
        plain: accept a backbone without Emphasize-Attention, such as Wan's and Phantom's files.

    Raises:
        CheckpointError: the file is of another kind, tensors are missing, unknown or of a wrong shape (all are listed),
            or values are NaN or infinite.
        MissingDependencyError: the file is GGUF and the gguf package is not installed.
    """
    source, model = open_transformer(path, ops=ops, attention=attention, plain=plain)
    state, bad = {}, []
    for name in source.tensors:
        tensor = source.read(name, dtype)
        if not is_finite(tensor):
            bad.append(name)
        state[name] = tensor.to(device)
    _refuse_values(path, bad)
    model.load_state_dict(state, assign=True)
    return model.eval()


def open_transformer(
    path: str | Path, *, ops: Any = torch.nn, attention: AttentionFunction = torch_attention, plain: bool = False
) -> tuple[WeightSource, ContextAnyoneTransformer]:
    """Open a transformer's file as `load_transformer` does, without reading weights.

    Returns:
        The file, whose names and shapes are checked, and its transformer on the meta device.

    Raises:
        CheckpointError: as `load_transformer`, but for values.
    """
    source = open_source(path)
    config = transformer_config(source, plain=plain)
    model = _empty_transformer(path, config, ops, attention)
    if differences := compare(expected_tensors(model), source.tensors, source.unknown):
        fits = "its own config" if "config" in source.metadata else str(source.recognised)
        raise CheckpointError(f"{path} does not fit {fits}: {differences}.")
    return source, model


def transformer_config(source: WeightSource, *, plain: bool) -> ContextAnyoneConfig:
    """The config of an opened transformer file: from the header, else inferred from the shapes.

    Args:
        source: any opened file.
        plain: accept a backbone without Emphasize-Attention.

    Raises:
        CheckpointError: the file is no transformer, or a variant of Wan T2V with other inputs, or a backbone without
            Emphasize-Attention while `plain` is False.
    """
    found = source.recognised
    if found.kind != WAN and not (plain and found.kind == TRANSFORMER):
        if plain:
            given = f"a {found.kind} file" if found.stated else found
            raise CheckpointError(
                f"{source.path} is {given}; a transformer of Wan 2.1 T2V, of a model with its tensors (Phantom-Wan, "
                "RefAlign, Bernini-R) or of this project is needed here."
            )
        require_kind(found, TRANSFORMER)
    config = _read_config(source)
    if found.kind == WAN and found.family.startswith(FUN_V1_1):
        raise CheckpointError(
            f"{source.path} is {found}, which reads pictures by a layer of its own (ref_conv); use the first version, "
            "Wan2.1-Fun-1.3B-Control (or 14B), which has the same condition channels without it."
        )
    if found.kind == WAN and not found.family.startswith(RUNS_HERE):
        raise CheckpointError(
            f"{source.path} is {found}, which takes other inputs; Wan 2.1 T2V, Phantom-Wan, Wan2.1-Fun-Control or a "
            "ContextAnyone transformer is needed. A file with a CLIP branch serves as --clip-branch of contextanyone "
            "init."
        )
    if found.kind == WAN and not plain:
        raise CheckpointError(
            f"{source.path} is {found}, without Emphasize-Attention; a ContextAnyone transformer is needed. "
            "contextanyone init --backbone makes one to be trained from it; generate --model auto runs it unchanged."
        )
    return config


def save_transformer(
    path: str | Path,
    model: ContextAnyoneTransformer,
    *,
    dtype: torch.dtype,
    extra: Mapping[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a transformer in `dtype`, with its config, in the format that `load_transformer` reads.

    One tensor at a time is converted, so an `OnDemand` of a large network needs the memory of its largest tensor.

    Args:
        tensors: the values, by the names of `model`; None takes its own.

    Raises:
        CheckpointError, OSError: as `save_safetensors`.
    """
    own = model.state_dict()
    values = own if tensors is None else tensors
    plan = {name: TensorInfo(NAMES[dtype], tuple(tensor.shape)) for name, tensor in own.items()}
    metadata = _metadata(TRANSFORMER, model.config.to_dict(), extra)
    write_streamed(Path(path), plan, lambda name: values[name].detach().to(dtype).cpu(), metadata)


def describe(path: str | Path) -> Description:
    """Describe a weight file; only its header is read.

    Raises:
        CheckpointError: as `read_header`, or the transformer config in the header is invalid.
    """
    source = open_source(path)
    found = source.recognised
    config = source.config() if "config" in source.metadata else _guessed_config(source)
    differences = None
    if found.kind in (TRANSFORMER, WAN) and (config or found.stated):
        model = _empty_transformer(path, _read_config(source), torch.nn, torch_attention)
        differences = compare(expected_tensors(model), source.tensors, source.unknown)
    parameters = sum(count for dtype, count in found.dtypes.items() if dtype not in INTEGERS)
    size = source.size_bytes
    return Description(Path(path), found, size, parameters, config, source.metadata, differences)


def _guessed_config(source: WeightSource) -> dict[str, Any]:
    try:
        return source.config()
    except CheckpointError:  # an incomplete model; the description lists what the file holds
        return {}


def _read_config(source: WeightSource) -> ContextAnyoneConfig:
    try:
        config = ContextAnyoneConfig.from_dict(source.config())
    except InputError as error:
        raise CheckpointError(f"{source.path} has a config that this version cannot read: {error}") from error
    if config.num_layers > len(source.tensors):
        raise CheckpointError(
            f"{source.path} has a config that does not fit: num_layers is {config.num_layers}, with "
            f"{len(source.tensors)} tensors in the file."
        )
    return config


def _empty_transformer(
    path: str | Path, config: ContextAnyoneConfig, ops: Any, attention: AttentionFunction
) -> ContextAnyoneTransformer:
    try:
        return ContextAnyoneTransformer(config, ops, attention, device="meta")
    except (RuntimeError, TypeError, OverflowError) as error:  # raised by torch for sizes beyond 64 bits
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} has a config that this version cannot read: {reason}") from error


def _refuse_values(path: str | Path, bad: list[str]) -> None:
    if bad:
        raise CheckpointError(f"{path} holds NaN or infinite values in {listed(bad)}; the weights are unusable.")
