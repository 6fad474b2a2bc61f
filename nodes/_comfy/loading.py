"""A weight file as a native MODEL; other files are refused by what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import torch

from ...contextanyone_core.checkpoint import (
    TRANSFORMER,
    Header,
    compare_names,
    expected_tensors,
    load_tensors,
    read_header,
    require_finite,
    require_kind,
)
from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.errors import CheckpointError
from ...contextanyone_core.transformer import ContextAnyoneTransformer
from .model import Storage, native_model

FOLDER = "diffusion_models"
WEIGHT_DTYPES = {
    "default": Storage(),
    "fp8_e4m3fn": Storage(torch.float8_e4m3fn),
    "fp8_e4m3fn_fast": Storage(torch.float8_e4m3fn, fp8_optimizations=True),
    "fp8_e5m2": Storage(torch.float8_e5m2),
}


def model_names() -> list[str]:
    """The files of `models/diffusion_models`, as ComfyUI lists them."""
    return list(folder_paths.get_filename_list(FOLDER))


def load_by_name(name: str, weight_dtype: str) -> Any:
    """MODEL of a file of `models/diffusion_models`.

    Raises:
        CheckpointError: the file is gone, damaged, or of another kind; the message says which node loads it.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise CheckpointError(f"{name} is no longer in models/{FOLDER}; put it back, or choose another file.")
    return load_contextanyone(Path(path), WEIGHT_DTYPES[weight_dtype])


def load_contextanyone(path: Path, storage: Storage | None = None, *, disable_dynamic: bool = False) -> Any:
    """MODEL of a transformer file.

    Raises:
        CheckpointError: another kind of file, or one that does not fit its own config.
    """
    header = read_header(path)
    require_kind(path, header, TRANSFORMER)
    config = ContextAnyoneConfig.from_dict(header.config)
    _require_all(path, config, header)
    tensors = load_tensors(path)
    require_finite(path, tensors)
    patcher = native_model(config, tensors, storage, disable_dynamic=disable_dynamic)
    patcher.cached_patcher_init = (load_contextanyone, (path, storage))
    return patcher


def _require_all(path: Path, config: ContextAnyoneConfig, header: Header) -> None:
    expected = expected_tensors(ContextAnyoneTransformer(config, device="meta"))
    missing, unknown, wrong = compare_names(expected, header.tensors)
    if missing or unknown or wrong:
        found = f"{len(missing)} tensors missing, {len(unknown)} unknown, {len(wrong)} of another shape"
        raise CheckpointError(f"{path.name} does not fit its own config: {found}. Download it again.")
