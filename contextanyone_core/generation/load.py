"""The parts of a model, read from a folder and made ready to run in the way that is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import ContextAnyoneConfig
from ..encoders.image import load_image_encoder
from ..encoders.on_demand import AnyImageEncoder, AnyTextEncoder, LentImageEncoder, LentTextEncoder
from ..encoders.text import load_text_encoder
from ..encoders.vae import VideoVAE, load_vae
from ..errors import CheckpointError
from ..model.transformer import ContextAnyoneTransformer
from ..model_kinds import ModelKind
from ..runtime.compile import check_compiler, compile_blocks
from ..runtime.kernels import make_attention
from ..runtime.offload import store_in_fp8, stream_transformer
from ..runtime.options import Execution
from ..runtime.step_cache import cache_steps
from ..weights.checkpoint import load_transformer
from ..weights.locate import need_part
from ..weights.lora import load_lora, merge_loras
from .budget import settle_memory


@dataclass(frozen=True)
class Parts:
    """What a `ContextAnyonePipeline` is made of; no image encoder for a transformer without the CLIP branch."""

    transformer: ContextAnyoneTransformer
    vae: VideoVAE
    text_encoder: AnyTextEncoder
    image_encoder: AnyImageEncoder | None


def load_parts(
    folder: Path, device: torch.device, dtype: torch.dtype, kind: ModelKind, execution: Execution
) -> tuple[Parts, Execution]:
    """Load transformer, VAE, text encoder and image encoder of a folder (`parts.find_part`), strictly.

    Returns:
        The parts, and the execution as it took effect: without `auto`.

    Raises:
        CheckpointError: a file is missing, damaged, of another model or does not fit the others; a LoRA likewise.
        MissingDependencyError: a package is not installed.
        InputError: what `execution` asks for cannot be done on this device or in this dtype.
    """
    name, attention = make_attention(execution.attention, device, dtype)
    execution = replace(execution, attention=name, memory=settle_memory(folder, device, dtype, kind, execution))
    execution.check(kind)
    if execution.compile:
        check_compiler(device)
    away = execution.memory != "high"
    transformer = _load_transformer(folder, torch.device("cpu") if away else device, dtype, kind)
    merge_loras(transformer, [(load_lora(lora.path, transformer), lora.strength) for lora in execution.loras])
    transformer.attention = attention
    if execution.compile:
        compile_blocks(transformer)
    if execution.step_cache is not None:
        cache_steps(transformer, execution.step_cache)
    if execution.memory == "low":
        store_in_fp8(transformer, dtype)
        stream_transformer(transformer, device)
    vae = VideoVAE(load_vae(need_part(folder, "vae"), dtype, device), transformer.config, tiled=away)
    text_encoder, image_encoder = _load_encoders(folder, device, dtype, transformer.config, away=away)
    return Parts(transformer, vae, text_encoder, image_encoder), execution


def _load_encoders(
    folder: Path, device: torch.device, dtype: torch.dtype, config: ContextAnyoneConfig, *, away: bool
) -> tuple[AnyTextEncoder, AnyImageEncoder | None]:
    image: AnyImageEncoder | None = None
    if config.image_dim is not None:
        load_image = LentImageEncoder if away else load_image_encoder
        image = load_image(need_part(folder, "image_encoder"), dtype, device)
    load_text = LentTextEncoder if away else load_text_encoder
    return load_text(need_part(folder, "text_encoder"), dtype, device), image


def _load_transformer(
    folder: Path, device: torch.device, dtype: torch.dtype, kind: ModelKind
) -> ContextAnyoneTransformer:
    path = need_part(folder, "transformer", kind)
    transformer = load_transformer(path, dtype=dtype, device=device, plain=not kind.emphasis)
    if transformer.config.emphasize and kind.references and not kind.emphasis:  # without a reference ours is plain Wan
        raise CheckpointError(
            f"{path} is a ContextAnyone transformer; --model {kind.name} needs the --weights of {kind.title}."
        )
    return transformer


def check_parts(config: ContextAnyoneConfig, text: AnyTextEncoder, image: AnyImageEncoder | None) -> None:
    """See that encoders are the transformer's.

    Raises:
        CheckpointError: naming the size that differs.
    """
    given = {"text_dim": text.text_dim, "text_len": text.text_len, "image_dim": image and image.image_dim}
    for name, value in given.items():
        needed = getattr(config, name)
        if value != needed:
            raise CheckpointError(
                f"{name} of the encoder is {value}, the transformer needs {needed}: the files do not belong together."
            )
