"""Loading the components of a model from a folder, set up for the requested execution.

The memory mode for `auto` is selected from the files' headers, before any weights are loaded.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import ContextAnyoneConfig
from ..encoders.image import IMAGE_KEYS, load_image_encoder
from ..encoders.loading import checked_config
from ..encoders.on_demand import AnyImageEncoder, AnyTextEncoder, OnDemandImageEncoder, OnDemandTextEncoder
from ..encoders.text import TEXT_KEYS, load_text_encoder
from ..encoders.vae import VAE_KEYS, VideoVAE, load_vae
from ..errors import CheckpointError, InputError
from ..model.transformer import ContextAnyoneTransformer
from ..model_specs import ModelSpec
from ..runtime.compile import check_compiler, compile_blocks
from ..runtime.devices import free_bytes
from ..runtime.kernels import make_attention
from ..runtime.memory import MODES, ModelSizes, fitting_mode, stage_bytes, step_cache_bytes
from ..runtime.offload import StreamedTransformer, store_in_fp8
from ..runtime.options import Execution
from ..runtime.step_cache import check_step_cache
from ..weights.checkpoint import load_transformer, transformer_config
from ..weights.locate import need_component
from ..weights.lora import load_lora, merge_loras
from ..weights.naming import IMAGE_ENCODER, TEXT_ENCODER, VAE
from ..weights.source import WeightSource, open_source

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30


@dataclass(frozen=True)
class Components:
    """The networks of a `ContextAnyonePipeline`; no image encoder where none is used (`reads_clip`)."""

    transformer: ContextAnyoneTransformer
    vae: VideoVAE
    text_encoder: AnyTextEncoder
    image_encoder: AnyImageEncoder | None


def load_components(
    folder: Path, device: torch.device, dtype: torch.dtype, spec: ModelSpec, execution: Execution
) -> tuple[Components, Execution]:
    """Load transformer, VAE, text encoder and image encoder of a folder (`locate.find_component`), strictly.

    Returns:
        The components, and the execution with `auto` resolved.

    Raises:
        CheckpointError: a file is missing, damaged, of another model or does not fit the others; a LoRA likewise.
        MissingDependencyError: a package is not installed.
        InputError: the device or dtype does not support the requested execution.
    """
    name, attention = make_attention(execution.attention, device, dtype)
    execution = replace(execution, attention=name, memory=settle_memory(folder, device, dtype, spec, execution))
    execution.check(spec)
    if execution.memory == "low" and device.type == "mps":
        raise InputError("--memory low stores matrices in fp8, which mps does not have; use --memory balanced.")
    if execution.compile:
        check_compiler(device)
    away = execution.memory != "high"
    transformer = _load_transformer(folder, torch.device("cpu") if away else device, dtype, spec)
    merge_loras(transformer, [(load_lora(lora.path, transformer), lora.strength) for lora in execution.loras])
    transformer.attention = attention
    if execution.compile:
        compile_blocks(transformer)
    if execution.step_cache is not None:
        check_step_cache(transformer)
    if execution.memory == "low":
        store_in_fp8(transformer, dtype)
        transformer = StreamedTransformer(transformer, device)
    vae = VideoVAE(load_vae(need_component(folder, "vae"), dtype, device), transformer.config, tiled=away)
    clip = reads_clip(transformer.config, spec)
    text_encoder, image_encoder = _load_encoders(folder, device, dtype, clip=clip, away=away)
    return Components(transformer, vae, text_encoder, image_encoder), execution


def _load_encoders(
    folder: Path, device: torch.device, dtype: torch.dtype, *, clip: bool, away: bool
) -> tuple[AnyTextEncoder, AnyImageEncoder | None]:
    image: AnyImageEncoder | None = None
    if clip:
        load_image = OnDemandImageEncoder if away else load_image_encoder
        image = load_image(need_component(folder, "image_encoder"), dtype, device)
    load_text = OnDemandTextEncoder if away else load_text_encoder
    return load_text(need_component(folder, "text_encoder"), dtype, device), image


def _load_transformer(
    folder: Path, device: torch.device, dtype: torch.dtype, spec: ModelSpec
) -> ContextAnyoneTransformer:
    path = need_component(folder, "transformer", spec)
    transformer = load_transformer(path, dtype=dtype, device=device, plain=not spec.emphasis)
    if transformer.config.emphasize and spec.references and not spec.emphasis:  # without a reference ours is plain Wan
        raise CheckpointError(
            f"{path} is a ContextAnyone transformer; --model {spec.name} needs the --weights of {spec.title}."
        )
    transformer.config = spec.own_config(transformer.config)
    return transformer


def reads_clip(config: ContextAnyoneConfig, spec: ModelSpec) -> bool:
    """Whether CLIP's tokens enter the network; without references a backbone's branch for them is unused."""
    return config.image_dim is not None and spec.references


def check_components(
    config: ContextAnyoneConfig, spec: ModelSpec, text: AnyTextEncoder, image: AnyImageEncoder | None
) -> None:
    """Check that the encoders fit the transformer.

    Raises:
        CheckpointError: a size differs; the message names it.
    """
    given: dict[str, int | None] = {"text_dim": text.text_dim, "text_len": text.text_len}
    if reads_clip(config, spec) or image is not None:
        given["image_dim"] = None if image is None else image.image_dim
    for name, value in given.items():
        needed = getattr(config, name)
        if value != needed:
            raise CheckpointError(
                f"{name} of the encoder is {value}, the transformer needs {needed}: the files do not belong together."
            )


def settle_memory(folder: Path, device: torch.device, dtype: torch.dtype, spec: ModelSpec, execution: Execution) -> str:
    """The memory mode to run in: as requested, or what `auto` selects; anything but `high` is logged.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
    """
    if execution.memory != "auto":
        return execution.memory
    free = free_bytes(device)
    if free is None:
        return "high"
    config, sizes = model_sizes(folder, spec)
    stages = {mode: stage_bytes(mode, sizes, config, execution.video, dtype.itemsize, spec) for mode in MODES}
    if execution.step_cache is not None:
        kept = step_cache_bytes(config, execution.video.shape, dtype.itemsize)
        stages = {mode: peaks | {"denoise": peaks["denoise"] + kept} for mode, peaks in stages.items()}
    mode = fitting_mode(free, stages) or MODES[-1]
    if mode != "high":
        needed = max(stages[mode].values())
        _LOG.warning("memory: %s, about %.1f GiB of the %.1f that are free", mode, needed / _GIB, free / _GIB)
    return mode


def model_sizes(folder: Path, spec: ModelSpec) -> tuple[ContextAnyoneConfig, ModelSizes]:
    """The config of the transformer in a folder, and the numbers of parameters of all its components, from the headers.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
    """
    transformer = open_source(need_component(folder, "transformer", spec))
    config = transformer_config(transformer, plain=True)
    text, vae = _encoder(folder, "text_encoder", TEXT_ENCODER, TEXT_KEYS), _encoder(folder, "vae", VAE, VAE_KEYS)
    image = 0
    if reads_clip(config, spec):
        image = _count(_encoder(folder, "image_encoder", IMAGE_ENCODER, IMAGE_KEYS))
    return config, ModelSizes(
        transformer=_count(transformer),
        block=_count(transformer, "blocks.0."),
        text=_count(text, besides=("spiece_model",)),
        text_table=_count(text, "shared."),
        text_block=_count(text, "encoder.block.0."),
        image=image,
        vae=_count(vae),
        vae_width=int(vae.config()["base_dim"]),
    )


def _encoder(folder: Path, component: str, kind: str, keys: frozenset[str]) -> WeightSource:
    source = open_source(need_component(folder, component))
    checked_config(source, kind, keys)
    return source


def _count(source: WeightSource, prefix: str = "", besides: tuple[str, ...] = ()) -> int:
    return sum(
        math.prod(info.shape)
        for name, info in source.tensors.items()
        if name.startswith(prefix) and name not in besides
    )
