"""Which memory mode a model's files ask for on a device (`execution.MEMORIES`), told from their headers."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch

from ..config import ContextAnyoneConfig
from ..encoders.image import IMAGE_KEYS
from ..encoders.loading import checked_config
from ..encoders.text import TEXT_KEYS
from ..encoders.vae import VAE_KEYS
from ..model_kinds import ModelKind
from ..runtime.devices import free_bytes
from ..runtime.memory import MODES, ModelSizes, fitting_mode, stage_bytes, step_cache_bytes
from ..runtime.options import Execution
from ..weights.checkpoint import transformer_config
from ..weights.locate import need_part
from ..weights.naming import IMAGE_ENCODER, TEXT_ENCODER, VAE
from ..weights.source import WeightSource, open_source

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30


def settle_memory(folder: Path, device: torch.device, dtype: torch.dtype, kind: ModelKind, execution: Execution) -> str:
    """The memory mode to run in: what is asked for, or what `auto` comes to; other than `high` is said in the log.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
    """
    if execution.memory != "auto":
        return execution.memory
    free = free_bytes(device)
    if free is None:
        return "high"
    config, sizes = model_sizes(folder, kind)
    stages = {mode: stage_bytes(mode, sizes, config, execution.video, dtype.itemsize) for mode in MODES}
    if execution.step_cache is not None:
        kept = step_cache_bytes(config, execution.video, dtype.itemsize)
        stages = {mode: peaks | {"denoise": peaks["denoise"] + kept} for mode, peaks in stages.items()}
    mode = fitting_mode(free, stages)
    if mode != "high":
        needed = max(stages[mode].values())
        _LOG.warning("memory: %s, about %.1f GiB of the %.1f that are free", mode, needed / _GIB, free / _GIB)
    return mode


def model_sizes(folder: Path, kind: ModelKind) -> tuple[ContextAnyoneConfig, ModelSizes]:
    """The config of the transformer in a folder, and the numbers of parameters of all its parts, from the headers.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind.
    """
    transformer = open_source(need_part(folder, "transformer", kind))
    config = transformer_config(transformer, plain=True)
    text, vae = _encoder(folder, "text_encoder", TEXT_ENCODER, TEXT_KEYS), _encoder(folder, "vae", VAE, VAE_KEYS)
    image = 0
    if config.image_dim is not None:
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


def _encoder(folder: Path, part: str, kind: str, keys: frozenset[str]) -> WeightSource:
    source = open_source(need_part(folder, part))
    checked_config(source, kind, keys)
    return source


def _count(source: WeightSource, prefix: str = "", besides: tuple[str, ...] = ()) -> int:
    return sum(
        math.prod(info.shape)
        for name, info in source.tensors.items()
        if name.startswith(prefix) and name not in besides
    )
