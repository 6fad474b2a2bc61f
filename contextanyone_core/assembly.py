"""The parts of a model, read from a folder and made ready to run in the way that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import load_transformer
from .compiled import compile_blocks
from .errors import CheckpointError
from .execution import Execution
from .hosts.image import ImageEncoder, load_image_encoder
from .hosts.kernels import make_attention
from .hosts.text import TextEncoder, load_text_encoder
from .hosts.vae import VideoVAE, load_vae
from .kinds import ModelKind
from .lora import load_lora, merge_loras
from .parts import need_part
from .transformer import ContextAnyoneTransformer


@dataclass(frozen=True)
class Parts:
    """What a `ContextAnyonePipeline` is made of; no image encoder for a transformer without the CLIP branch."""

    transformer: ContextAnyoneTransformer
    vae: VideoVAE
    text_encoder: TextEncoder
    image_encoder: ImageEncoder | None


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
    transformer = _load_transformer(folder, device, dtype, kind)
    merge_loras(transformer, [(load_lora(lora.path, transformer), lora.strength) for lora in execution.loras])
    transformer.attention = attention
    if execution.compile:
        compile_blocks(transformer)
    image_encoder = None
    if transformer.config.image_dim is not None:
        image_encoder = load_image_encoder(need_part(folder, "image_encoder"), dtype, device)
    vae = VideoVAE(load_vae(need_part(folder, "vae"), dtype, device), transformer.config)
    text_encoder = load_text_encoder(need_part(folder, "text_encoder"), dtype, device)
    return Parts(transformer, vae, text_encoder, image_encoder), execution.settled(attention=name)


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
