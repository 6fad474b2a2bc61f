"""Weight files with random values: the names, shapes and headers of real ones, written tensor by tensor."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.stack import StackSizes, borrowed_tokenizer
from contextanyone_core.checkpoints.expected import host_tensors
from contextanyone_core.encoders.text import SPIECE
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.comparison import expected_tensors
from contextanyone_core.weights.naming import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE
from contextanyone_core.weights.tensors import TensorInfo, empty
from contextanyone_core.weights.writer import NAMES, write_streamed

_SMALL = 0.02


@dataclass(frozen=True)
class Component:
    """One weight file: its kind, its config, and the shape of every tensor."""

    kind: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def plan_components(sizes: StackSizes) -> dict[str, Component]:
    """Transformer, VAE, text and image encoder, by file name."""
    config = sizes.transformer
    hosts = {"vae": (VAE, sizes.vae), "text_encoder": (TEXT_ENCODER, sizes.text)}
    hosts |= {"image_encoder": (IMAGE_ENCODER, sizes.image)}
    model = ContextAnyoneTransformer(config, device="meta")
    components = {"transformer": Component(TRANSFORMER, config.to_dict(), expected_tensors(model))}
    for name, (kind, values) in hosts.items():
        shapes = host_tensors(kind, values) or {}
        components[name] = Component(kind, values, {key: shape for key, shape in shapes.items() if key != SPIECE})
    return components


def write_random_files(
    components: Mapping[str, Component], folder: Path, dtype: torch.dtype, progress: Callable[[str], None]
) -> None:
    """Write the files in the form that `ContextAnyonePipeline.from_folder` reads.

    Args:
        folder: an existing folder, for one safetensors file per component.
        progress: called with each component's name before it is written.

    Raises:
        OSError: the disk is full.
    """
    for name, component in components.items():
        progress(name)
        plan = {key: TensorInfo(NAMES[dtype], shape) for key, shape in component.shapes.items()}
        held: dict[str, Tensor] = {}
        if component.kind == TEXT_ENCODER:
            held[SPIECE] = torch.frombuffer(bytearray(borrowed_tokenizer()), dtype=torch.uint8)
            plan[SPIECE] = TensorInfo(NAMES[torch.uint8], tuple(held[SPIECE].shape))
        read = partial(_read, plan, dtype, held)
        header = {"kind": component.kind, "config": json.dumps(dict(component.config), sort_keys=True)}
        write_streamed(folder / f"{name}.safetensors", plan, read, header)


def _read(plan: Mapping[str, TensorInfo], dtype: torch.dtype, held: Mapping[str, Tensor], name: str) -> Tensor:
    return held[name] if name in held else random_tensor(name, plan[name].shape, dtype)


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random values, scaled to keep activations of order 1, and seeded by the tensor's name."""
    value, inner = empty(shape, dtype), torch.Size(shape[1:]).numel()
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return value.fill_(1.0)  # the scale of a norm
    spread = _SMALL if len(shape) == 1 else inner**-0.5
    return value.normal_(0.0, spread, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
