"""A weight file as a source of tensors under our names, read one at a time: renamed, fp8 unscaled, GGUF dequantised."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .container import Container, open_container
from .gguf_file import is_quantised, unpack
from .inferred import infer_config
from .naming import IMAGE_ENCODER, Named, Place, name_tensors
from .recognition import Recognised, recognise_container
from .safetensors_file import stated_config
from .tensors import COMPUTED, INTEGERS, StoredTensor, TensorInfo, cast, read_plain, stored_rows

_FP8 = ("float8_e4m3fn", "float8_e5m2")
HOST_FORMATS = ("int8_tensorwise", "nvfp4", "mxfp8")
"""Quantisations (`comfy_quant`) that ComfyUI's own layers compute with, and that are not unpacked here."""
_MAX_NOTE = 10_000  # maximum bytes of a layer's comfy_quant entry
_TOKENIZER = "spiece_model"  # umT5's tokenizer as bytes, not a weight


@dataclass(frozen=True)
class WeightSource:
    """An opened weight file; tensor data is read by `read` only.

    Attributes:
        path: the path that was opened.
        recognised: kind, family and naming of the file.
        metadata: text entries of the header.
        tensors: stored dtype and shape by our names (Wan's original ones for transformer and VAE, transformers' for
            the encoders).
        unknown: names that the naming does not have.
        num_layers: number of blocks in the file.
        size_bytes: total size of all files.
        formats: quantisations of its layers, as `comfy_quant` names them.
    """

    path: Path
    recognised: Recognised
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    unknown: list[str]
    num_layers: int
    size_bytes: int
    formats: frozenset[str]
    _container: Container = field(repr=False)
    _named: Named | None = field(repr=False)

    def config(self) -> dict[str, Any]:
        """The config from the header, else inferred from the shapes.

        Raises:
            CheckpointError: the header's config is not a JSON object, or the shapes fit no such model.
        """
        if "config" in self.metadata:
            return stated_config(self.path, self.metadata)
        if self.recognised.kind is None or self._named is None:
            raise CheckpointError(f"{self.path} is {self.recognised}, without a config in its header.")
        try:
            return infer_config(self.recognised.kind, self.tensors, self.num_layers)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} is {self.recognised}. {error}") from error

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor by our name, on the CPU, in its own memory; quantised values are dequantised.

        Args:
            name: a key of `tensors`.
            dtype: dtype of a floating-point tensor; None keeps the stored one, or bf16 for fp8 and GGUF.

        Raises:
            CheckpointError: the file cannot be read, or its dtype is not supported.
            MissingDependencyError: the tensor is GGUF and the gguf package is not installed.
        """
        place = Place(name) if self._named is None else self._named.places[name]
        stored = self._container.tensors[place.name]
        scale = self._scale(name)
        value = unpack(stored, dtype or torch.bfloat16) if is_quantised(stored) else read_plain(stored)
        if place.third is not None:
            value = value.chunk(3)[place.third].contiguous()
        if scale is not None:
            value = cast(value, torch.float32).mul_(_broadcast(self.path, name, scale, value))
        value = value.reshape(self.tensors[name].shape)
        if not value.is_floating_point():
            return value
        computed = stored.dtype in COMPUTED and scale is None
        return cast(value, dtype or (value.dtype if computed else torch.bfloat16))

    def read_rows(self, name: str, rows: range, dtype: torch.dtype | None = None) -> Tensor:
        """Consecutive rows of what `read` returns, in their own memory.

        No more than these is read, unless the tensor is quantised, scaled, or part of another.

        Raises: as `read`.
        """
        place = Place(name) if self._named is None else self._named.places[name]
        stored = self._container.tensors[place.name]
        scaled = self._named is not None and name in self._named.scales
        plain = stored.dtype in COMPUTED and place.third is None and stored.stride is None and not scaled
        if not plain or not stored.shape or stored.shape != self.tensors[name].shape:
            return self.read(name, dtype)[rows.start : rows.stop].clone()
        return cast(value := read_plain(stored_rows(stored, rows)), dtype or value.dtype)

    def _scale(self, name: str) -> Tensor | None:
        if self._named is None or name not in self._named.scales:
            return None
        return read_plain(self._container.tensors[self._named.scales[name]]).float()


def open_source(path: str | Path, *, host_layers: bool = False) -> WeightSource:
    """Open a weight file of any supported format for reading under our names.

    Args:
        path: a weight file, an index of shards, or a folder with one model.
        host_layers: accept `HOST_FORMATS` too, for a host whose layers unpack them: `tensors` then has the shapes of
            the unpacked weights, and `read` is not for them.

    Raises:
        CheckpointError: the file is missing or damaged, or its quantisation is not supported.
    """
    container = open_container(path)
    named = name_tensors(container.tensors)
    recognised = recognise_container(container, named)
    unknown, layers = list[str](), 0
    tensors: dict[str, TensorInfo] = dict(container.tensors)
    formats = frozenset[str]()
    if named is not None:
        formats = _formats(container)
        _require_formats(container.path, formats, (*_FP8, *HOST_FORMATS) if host_layers else _FP8)
        unknown, layers = named.unknown, named.num_layers
        tensors = {ours: _info(named, ours, place, container) for ours, place in named.places.items()}
        if formats <= set(_FP8):
            _require_floats(container, tensors)
    return WeightSource(
        path=container.path,
        recognised=recognised,
        metadata=container.metadata,
        tensors=tensors,
        unknown=unknown,
        num_layers=layers,
        size_bytes=container.size,
        formats=formats,
        _container=container,
        _named=named,
    )


def _info(named: Named, ours: str, place: Place, container: Container) -> TensorInfo:
    stored = container.tensors[place.name]
    shape = stored.shape
    if place.third is not None:
        shape = (shape[0] // 3, *shape[1:]) if shape else shape
    if named.naming.kind == IMAGE_ENCODER and ours.endswith(("class_embedding", "position_embedding.weight")):
        while len(shape) > 1 and shape[0] == 1:  # the original has a batch dimension of 1
            shape = shape[1:]
    if stored.dtype == "U8" and len(shape) == 2 and f"{place.name}_scale_2" in container.tensors:
        shape = (shape[0], 2 * shape[1])  # nvfp4: two values in a byte
    return TensorInfo(stored.dtype, shape)


def _broadcast(path: Path, name: str, scale: Tensor, value: Tensor) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape[0] == value.shape[0] and scale.numel() == value.shape[0]:  # one scale per row
        return scale.reshape(-1, *[1] * (value.ndim - 1))
    raise CheckpointError(
        f"{path}: the scale of {name} has shape {tuple(scale.shape)}; one number or one a row is read."
    )


def _formats(container: Container) -> frozenset[str]:
    """The quantisations that a file's layers say of themselves, or its header says of them."""
    forms = {_format(container.tensors[name]) for name in container.tensors if name.endswith(".comfy_quant")}
    if "_quantization_metadata" in container.metadata:
        try:
            layers = json.loads(container.metadata["_quantization_metadata"])["layers"]
            forms |= {str(layer["format"]) for layer in layers.values()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{container.path} is damaged: its _quantization_metadata is not readable."
            ) from error
    return frozenset(forms)


def _require_formats(path: Path, formats: frozenset[str], known: Collection[str]) -> None:
    """Refuse quantisations that are not known, with who unpacks them."""
    other = sorted(formats - set(known))
    if not other:
        return
    named = ", ".join(other)[:200]
    if set(other) <= set(HOST_FORMATS):
        raise CheckpointError(
            f"{path} is quantised as {named}, which needs ComfyUI's layers: load it there by Load ContextAnyone; here "
            "use a file in bf16, fp16, fp8 (scaled or not) or GGUF, which are unpacked."
        )
    raise CheckpointError(
        f"{path} is quantised as {named}, which is not read here; use a file in bf16, fp16, fp8 or GGUF."
    )


def _require_floats(container: Container, tensors: dict[str, TensorInfo]) -> None:
    """Refuse integer weights: where their scales are stored is unknown."""
    for name, info in tensors.items():
        if info.dtype in INTEGERS and name != _TOKENIZER:
            raise CheckpointError(
                f"{container.path} is quantised: it holds {name} as {info.dtype}, which is not read here; "
                "use a file in bf16, fp16, fp8 or GGUF."
            )


def _format(stored: StoredTensor) -> str:
    if stored.dtype != "U8" or stored.size > _MAX_NOTE:
        raise CheckpointError(f"{stored.file} is damaged: a comfy_quant in it is no text.")
    try:
        return str(json.loads(bytes(read_plain(stored).tolist()))["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{stored.file} is damaged: a comfy_quant in it is not readable.") from error
