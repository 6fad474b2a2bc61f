"""Conversion of weight files to other tensor names and dtypes, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..weights.checkpoint import describe
from ..weights.name_tables import rename, text_table, transformer_table, vae_table
from ..weights.naming import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE, WAN
from ..weights.source import WeightSource, open_source
from ..weights.tensors import COMPUTED, INTEGERS, TORCH_DTYPES, TensorInfo, cast, is_finite
from ..weights.writer import NAMES, write_streamed
from .expected import compare_file

FP8 = torch.float8_e4m3fn
_FP8_LARGEST = 448.0
_TABLE = "relative_attention_bias"  # umT5's table of position biases: few rows, added to attention scores
_COMFYUI_PREFIX = "model.diffusion_model."


def convert(
    path: Path,
    out: Path,
    *,
    naming: str | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Convert a weight file of any supported format to one safetensors file.

    Args:
        path: a transformer, VAE, text or image encoder, in any format that `open_source` reads.
        out: the file to write.
        naming: original (Wan's), comfyui or diffusers; None is the naming of this project's files.
        dtype: dtype of the weights; None keeps the stored one, or bf16 for fp8 and GGUF. float8_e4m3fn applies to the
            blocks' matrices only; everything else is then bf16.
        progress: called with (tensors written, total).

    Raises:
        CheckpointError: the file is damaged or incomplete, its kind has no such naming, or it holds NaN or infinity.
        InputError: fp8 is requested, and the file has no tensor that would be stored in fp8.
        OSError: the disk is full.
    """
    source = open_source(path)
    _require_whole(source)
    if dtype is FP8 and not any(_dtype(source, name, dtype) is FP8 for name in source.tensors):
        raise InputError(
            f"{path} is {source.recognised}, without matrices in blocks, which are all that float8_e4m3fn is for; "
            "use --dtype bfloat16."
        )
    names = {theirs: ours for ours, theirs in _names(source, naming).items()}
    plan = {
        theirs: TensorInfo(NAMES[_dtype(source, ours, dtype)], source.tensors[ours].shape)
        for theirs, ours in names.items()
    }

    def read(name: str) -> Tensor:
        wanted = _dtype(source, names[name], dtype)
        value = source.read(names[name], None if wanted is FP8 or not wanted.is_floating_point else wanted)
        if not is_finite(value):
            raise CheckpointError(f"{path} holds NaN or infinite values in {names[name]} in {wanted}.")
        return cast(value.clamp_(-_FP8_LARGEST, _FP8_LARGEST), FP8) if wanted is FP8 else value

    own = {key: text for key, text in source.metadata.items() if source.recognised.stated and key != "format"}
    write_streamed(out, plan, read, own, progress)


def _require_whole(source: WeightSource) -> None:
    """Refuse an incomplete model; tensors beyond those that the config needs are accepted."""
    if source.recognised.kind in (TRANSFORMER, WAN):
        source.config()
    found = compare_file(describe(source.path))
    if found is not None and (lost := replace(found, unknown=[])):
        raise CheckpointError(f"{source.path} is {source.recognised} and not whole: {lost}. Download it again.")


def _names(source: WeightSource, naming: str | None) -> dict[str, str]:
    """Our name -> the name in the new file."""
    kind = source.recognised.kind
    if kind not in (TRANSFORMER, WAN, VAE, TEXT_ENCODER, IMAGE_ENCODER):
        raise CheckpointError(
            f"{source.path} is {source.recognised}; a transformer, VAE, text or image encoder can be converted."
        )
    if source.unknown:
        raise CheckpointError(f"{source.path} is {source.recognised}, whose names have no table: {source.unknown[:8]}.")
    same = {name: name for name in source.tensors}
    if kind == IMAGE_ENCODER and naming == "original":
        raise CheckpointError(
            f"{source.path} is {source.recognised}; Wan's original file also holds CLIP's text tower, "
            "so the vision tower alone has comfyui and diffusers names only."
        )
    if kind in (TRANSFORMER, WAN) and naming == "comfyui":
        return {name: _COMFYUI_PREFIX + name for name in same}
    table = None
    if kind in (TRANSFORMER, WAN) and naming == "diffusers":
        table = transformer_table(source.num_layers)
    elif kind == VAE and naming == "diffusers":
        table = vae_table()
    elif kind == TEXT_ENCODER and naming == "original":
        table = text_table(source.num_layers)
    if table is None:
        return same
    return {ours: theirs for theirs, ours in rename(same, table).items()}


def _dtype(source: WeightSource, name: str, asked: torch.dtype | None) -> torch.dtype:
    """The dtype in which a tensor is written."""
    info = source.tensors[name]
    stored = TORCH_DTYPES.get(info.dtype, torch.bfloat16)
    if info.dtype in INTEGERS:
        return stored
    if asked is FP8:
        in_block = ".weight" in name and ("block" in name or ".layers." in name)
        return FP8 if in_block and len(info.shape) == 2 and _TABLE not in name else torch.bfloat16
    return asked or (stored if info.dtype in COMPUTED else torch.bfloat16)
