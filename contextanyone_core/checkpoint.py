"""Weight files: safetensors with the model's config in the header, written whole or not at all, read strictly.

Every file of this project carries the metadata `format` ("pt"), `kind` and `config` (JSON) (DESIGN 2).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .attention import AttentionFunction, torch_attention
from .config import ContextAnyoneConfig
from .errors import CheckpointError, InputError
from .transformer import ContextAnyoneTransformer

TRANSFORMER = "contextanyone-transformer"
VAE = "wan-vae"
TEXT_ENCODER = "umt5-encoder"
IMAGE_ENCODER = "clip-vision"
PROBE = "probe"

_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4,
}  # fmt: skip
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, such as a .pth or .pt file of torch.save"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer; the weights themselves were not downloaded"),
    (b"<", "a web page or XML text, so the download probably failed"),
    (b"\x80", "a Python pickle, which may run code and is never opened"),
)
# A tensor name that only one kind of file has, without the prefix that some files put before all names.
_MARKS = (
    ("head.modulation", TRANSFORMER),
    ("decoder.middle.0.residual.0.gamma", VAE),
    ("decoder.mid_block.resnets.0.norm1.gamma", VAE),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", TEXT_ENCODER),
    ("vision_model.embeddings.class_embedding", IMAGE_ENCODER),
)


@dataclass(frozen=True)
class TensorInfo:
    """dtype (safetensors' name, such as F16) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a file says of itself; `kind` is None and `config` empty where the file says nothing."""

    kind: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Description:
    """A weight file in words and numbers, for `contextanyone inspect`.

    `missing`, `unknown` and `wrong_shape` are measured against the file's own config and are None where the file has
    no transformer config to measure against. `kind` is a guess by tensor names where `stated` is False.
    """

    path: Path
    kind: str | None
    stated: bool
    size_bytes: int
    parameters: int
    dtypes: dict[str, int]
    config: dict[str, Any]
    metadata: dict[str, str]
    missing: list[str] | None = None
    unknown: list[str] | None = None
    wrong_shape: list[str] | None = None


def save_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    config: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` with `kind`, `config` and `extra` in the header; the file appears under its name only when whole.

    Raises:
        CheckpointError: the folder does not exist, or `extra` would replace a reserved key.
        OSError: the disk is full or the folder read-only; nothing is left behind.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is not a folder; make it before saving {path.name}.")
    metadata = {"format": "pt", "kind": kind, "config": json.dumps(dict(config), sort_keys=True)}
    if extra and (taken := sorted(metadata.keys() & extra.keys())):
        raise CheckpointError(f"{', '.join(taken)} are reserved names in a weight file's header; use others in extra.")
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, beside, metadata=metadata | dict(extra or {}))
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        Path(beside).unlink(missing_ok=True)


def read_header(path: str | Path) -> Header:
    """Read and check a file's header without reading a tensor: sizes, offsets and dtypes must agree with the file.

    Raises:
        CheckpointError: the file is missing, damaged, or no safetensors file; the message says what it is.
    """
    path = Path(path)
    table = _read_table(path)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} is damaged: the metadata in its header is not text. Download it again.")
    tensors = _check_tensors(path, table)
    config: Any = {}
    if "config" in metadata:
        try:
            config = json.loads(metadata["config"])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: the config in its header is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged: the config in its header is not a JSON object.")
    return Header(metadata.get("kind"), config, tensors, metadata)


def load_tensors(path: str | Path, *, kind: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, as stored; with `kind`, a file of another kind is refused.

    Raises:
        CheckpointError: as `read_header`, or the file is of another kind.
    """
    header = read_header(path)
    if kind is not None:
        require_kind(path, header, kind)
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def require_kind(path: str | Path, header: Header, kind: str) -> None:
    """Refuse a file whose header says, or whose tensor names tell, that it is of another kind than `kind`.

    Raises:
        CheckpointError: the file is of another kind or of none that is known.
    """
    if header.kind == kind:
        return
    found = header.kind or guess_kind(header.tensors)
    given = f"a {found} file" if header.kind else f"by its tensor names a {found} file" if found else "of no known kind"
    if found == kind:
        given += " without this project's header"
    raise CheckpointError(f"{path} is {given}; a {kind} file is needed here.")


def require_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinite values.

    Raises:
        CheckpointError: names the first tensors that hold such values.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{path} holds NaN or infinite values in {_listed(bad)}; the weights are unusable.")


def load_transformer(
    path: str | Path,
    *,
    ops: Any = torch.nn,
    attention: AttentionFunction = torch_attention,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ContextAnyoneTransformer:
    """Build the transformer that a file's config describes and fill it from the file, every name and shape checked.

    Args:
        path: a file of kind `contextanyone-transformer`.
        ops, attention: as in `ContextAnyoneTransformer`.
        dtype: dtype of the weights in memory; None keeps the file's.
        device: where the weights go.

    Raises:
        CheckpointError: another kind of file, missing or unknown or misshaped tensors (all listed), NaN or infinity.
    """
    header = read_header(path)
    require_kind(path, header, TRANSFORMER)
    model = _empty_transformer(path, header, ops, attention)
    missing, unknown, wrong = compare_names(expected_tensors(model), header.tensors)
    if missing or unknown or wrong:
        raise CheckpointError(f"{path} does not fit its own config: {_differences(missing, unknown, wrong)}")
    tensors = load_tensors(path)
    require_finite(path, tensors)
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def save_transformer(
    path: str | Path, model: ContextAnyoneTransformer, *, dtype: torch.dtype, extra: Mapping[str, str] | None = None
) -> None:
    """Write a transformer and its config as `load_transformer` reads it, weights in `dtype`.

    Raises:
        CheckpointError, OSError: as `save_safetensors`.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_safetensors(path, tensors, kind=TRANSFORMER, config=model.config.to_dict(), extra=extra)


def describe(path: str | Path) -> Description:
    """Say what a weight file is from its header alone.

    Raises:
        CheckpointError: as `read_header`, or the transformer config in the header is invalid.
    """
    path = Path(path)
    header = read_header(path)
    dtypes: dict[str, int] = {}
    for info in header.tensors.values():
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + math.prod(info.shape)
    differences: tuple[list[str] | None, ...] = (None, None, None)
    if header.kind == TRANSFORMER:
        model = _empty_transformer(path, header, torch.nn, torch_attention)
        differences = compare_names(expected_tensors(model), header.tensors)
    return Description(
        path,
        header.kind or guess_kind(header.tensors),
        header.kind is not None,
        path.stat().st_size,
        sum(dtypes.values()),
        dtypes,
        header.config,
        header.metadata,
        *differences,
    )


def expected_tensors(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a module's weight file must hold."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def compare_names(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorInfo]
) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, names that are unknown, and "name: found shape, needed shape" where shapes differ."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {_shape(found[name].shape)}, needed {_shape(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    return missing, unknown, wrong


def guess_kind(names: Iterable[str]) -> str | None:
    """The kind of a file by the tensor names that only this kind has, or None."""
    listed = list(names)
    if any(".lora_" in name for name in listed):
        return "LoRA"
    for mark, kind in _MARKS:
        if any(name == mark or name.endswith("." + mark) for name in listed):
            return kind
    return None


def _read_table(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .safetensors file inside it.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            _refuse_foreign(path, start, size)
            length = int.from_bytes(start[:8], "little")
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path} is no safetensors file, or a truncated one: its header claims {length} bytes, "
                    f"the file has {size}. Download it again."
                )
            file.seek(8)
            table = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give the path of a .safetensors file.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a damaged one: its header is not JSON.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is not a JSON object.")
    return table


def _refuse_foreign(path: Path, start: bytes, size: int) -> None:
    needed = "a .safetensors file is needed"
    if size == 0:
        raise CheckpointError(f"{path} is empty; {needed}.")
    if size < 10:
        raise CheckpointError(f"{path} has only {size} bytes, too few for any weights; {needed}.")
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {what}; {needed}.")


def _check_tensors(path: Path, table: dict[str, Any]) -> dict[str, TensorInfo]:
    tensors, spans = {}, []
    for name, entry in table.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            fits = whole and (end - begin) * 8 == math.prod(shape) * _BITS[dtype]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged: the entry of {_name(name)} in its header is not readable."
            ) from error
        if not fits:
            raise CheckpointError(f"{path} is damaged: {_name(name)} does not fill the bytes that its header gives it.")
        tensors[name] = TensorInfo(dtype, shape)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise CheckpointError(
                f"{path} is damaged: {_name(name)} overlaps another tensor or leaves a hole before it."
            )
        position = end
    size = path.stat().st_size
    with path.open("rb") as file:
        data = size - 8 - int.from_bytes(file.read(8), "little")
    if position != data:
        raise CheckpointError(
            f"{path} is {'truncated' if position > data else 'damaged'}: its tensors need {position} bytes, "
            f"the file holds {data}. Download it again."
        )
    return tensors


def _empty_transformer(
    path: str | Path, header: Header, ops: Any, attention: AttentionFunction
) -> ContextAnyoneTransformer:
    try:
        config = ContextAnyoneConfig.from_dict(header.config)
        if config.num_layers > len(header.tensors):
            raise InputError(f"num_layers is {config.num_layers}, with {len(header.tensors)} tensors in the file.")
        return ContextAnyoneTransformer(config, ops, attention, device="meta")
    except (InputError, RuntimeError, TypeError, OverflowError) as error:  # torch's own for sizes beyond 64 bits
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} has a config that this version cannot read: {reason}") from error


def _is_finite(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:  # fp8 has no isfinite
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def _differences(missing: list[str], unknown: list[str], wrong: list[str]) -> str:
    parts = (("missing", missing), ("unknown", unknown), ("of the wrong shape", wrong))
    return "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in parts if names) + "."


def _name(name: str) -> str:
    return f"'{name}'" if name.isprintable() else repr(name)


def _listed(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
