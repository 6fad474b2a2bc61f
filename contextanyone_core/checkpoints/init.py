"""Initial checkpoint for training: a public backbone, a public CLIP branch, and newly initialised layers.

Written one tensor at a time, so that peak memory is that of the largest tensor.
"""

from __future__ import annotations

import copy
import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import ContextAnyoneConfig
from ..errors import CheckpointError
from ..model.condition import resized_patch_weight
from ..model.initialisation import initialise_layer
from ..model.transformer import ContextAnyoneTransformer
from ..weights.checkpoint import transformer_config
from ..weights.comparison import compare, expected_tensors
from ..weights.naming import TRANSFORMER
from ..weights.source import WeightSource, open_source
from ..weights.tensors import COMPUTED, TORCH_DTYPES, TensorInfo, cast, empty, is_finite
from ..weights.writer import NAMES, write_streamed

_LOG = logging.getLogger(__name__)
_CLIP = "img_emb.proj.0.weight"
_PATCHES = "patch_embedding.weight"
_CLIP_PARTS = ("img_emb.", ".k_img.", ".v_img.", ".norm_k_img.")
_NEW_PARTS = (".emphasize_attn.", ".norm_emphasize.")


def write_starting_checkpoint(
    backbone: Path,
    out: Path,
    *,
    clip_branch: Path | None = None,
    condition: bool = False,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ContextAnyoneConfig:
    """Write a complete ContextAnyone transformer; without a reference its output equals the backbone's.

    With a reference, the video attends to the reference stream from the first training step, through the backbone's
    self-attention, which was not trained for it.

    Args:
        backbone: Wan 2.1 T2V, Phantom-Wan or Wan2.1-Fun-Control, which brings trained condition channels and a CLIP
            branch, in any form that `open_source` reads.
        out: the safetensors file to write.
        clip_branch: a file with Wan's CLIP branch at the backbone's size, such as Wan2.1-Fun-1.3B-InP; None starts the
            branch anew (with zero values, so that it has no effect at first).
        condition: add condition channels for pose and start frame to a backbone without them, all zero: it follows no
            pose until they are trained, which is logged as a warning.
        dtype: of the weights; None takes the backbone's, bf16 for fp8 and GGUF.
        progress: called with (tensors written, of how many).

    Returns: the config of the new model.

    Raises:
        CheckpointError: a file is damaged, of another kind, or of another size than the other, or `condition` is asked
            for and the backbone has such channels.
        OSError: the disk is full.
    """
    base = open_source(backbone)
    clip = None if clip_branch is None else _open_clip(clip_branch)
    config = _config(base, clip, condition)
    if half := base.recognised.half:
        _LOG.warning("%s; a training at all noise levels starts better from Wan 2.1", half)
    model = ContextAnyoneTransformer(config, device="meta")
    expected = expected_tensors(model)
    origin = {name: _origin(name, base, clip) for name in expected}
    wide = expected[_PATCHES]
    narrow = (wide[0], config.in_dim, *wide[2:]) if condition else wide
    _check(base, clip, expected | {_PATCHES: narrow}, origin)
    stored = dtype or _main_dtype(base)

    def read(name: str) -> Tensor:
        source = origin[name]
        value = _new(model, name, stored) if source is None else source.read(name, stored)
        if not is_finite(value):
            file = out if source is None else source.path
            raise CheckpointError(f"{file} holds NaN or infinite values in {name} in {stored}.")
        return resized_patch_weight(value, wide[1]) if name == _PATCHES else value

    plan = {name: TensorInfo(NAMES[stored], shape) for name, shape in expected.items()}
    write_streamed(out, plan, read, _metadata(config, base, origin[_CLIP], condition), progress)
    if condition:
        _LOG.warning("the condition channels of %s are untrained (zero): it follows no pose until it is trained", out)
    return config


def _open_clip(path: Path) -> WeightSource:
    source = open_source(path)
    if _CLIP not in source.tensors:
        raise CheckpointError(
            f"{path} is {source.recognised}, without a CLIP branch (img_emb); Wan2.1-Fun-1.3B-InP or Control has one."
        )
    return source


def _metadata(
    config: ContextAnyoneConfig, base: WeightSource, clip: WeightSource | None, new_channels: bool
) -> dict[str, str]:
    """The header's metadata: the config, and which file each part comes from."""
    backbone = f"{base.path.name}: {base.recognised}"
    made_of = {"backbone": backbone, "clip_branch": "new" if clip is None else f"{clip.path.name}: {clip.recognised}"}
    if config.condition_dim:
        made_of["condition"] = "new" if new_channels else backbone
    return {
        "kind": TRANSFORMER,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "made_of": json.dumps(made_of),
    }


def _config(base: WeightSource, clip: WeightSource | None, condition: bool) -> ContextAnyoneConfig:
    config = transformer_config(base, plain=True)
    if condition and config.condition_dim:
        raise CheckpointError(f"{base.path} is {base.recognised} and has condition channels; leave --condition out.")
    if config.emphasize:
        raise CheckpointError(f"{base.path} is {base.recognised} and whole already; train it as it is.")
    image_dim = config.image_dim or ContextAnyoneConfig.wan_1_3b().image_dim
    if clip is not None:
        image_dim = (*clip.tensors[_CLIP].shape, 0)[0]
    condition_dim = 2 * config.in_dim if condition else config.condition_dim
    return replace(config, emphasize=True, image_dim=image_dim, condition_dim=condition_dim)


def _origin(name: str, base: WeightSource, clip: WeightSource | None) -> WeightSource | None:
    """The file that a tensor is copied from; None for a new tensor."""
    if clip is not None and _is_in(name, _CLIP_PARTS):
        return clip
    return base if name in base.tensors else None


def _is_in(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _check(
    base: WeightSource,
    clip: WeightSource | None,
    expected: dict[str, tuple[int, ...]],
    origin: dict[str, WeightSource | None],
) -> None:
    """Refuse a backbone with missing or unknown tensors, and a CLIP branch of another size."""
    branch = any(_is_in(name, _CLIP_PARTS) for name in base.tensors)
    new = _NEW_PARTS if branch else (*_NEW_PARTS, *_CLIP_PARTS)
    for source in (base, *([] if clip is None else [clip])):
        needed = {
            name: shape
            for name, shape in expected.items()
            if origin[name] is source or (source is base and origin[name] is None and not _is_in(name, new))
        }
        found = {name: info for name, info in source.tensors.items() if name in needed}
        more = [] if source is clip else [name for name in base.tensors if name not in expected] + base.unknown
        if differences := compare(needed, found, more):
            wanted = "be a whole backbone" if source is base else f"fit the backbone {base.recognised}"
            raise CheckpointError(f"{source.path} is {source.recognised} and does not {wanted}: {differences}.")


def _main_dtype(base: WeightSource) -> torch.dtype:
    dtypes = base.recognised.dtypes
    main = max(dtypes, key=lambda name: dtypes[name])
    return TORCH_DTYPES[main] if main in COMPUTED else torch.bfloat16


def _new(model: ContextAnyoneTransformer, name: str, dtype: torch.dtype) -> Tensor:
    """A newly initialised tensor; the seed is fixed by the layer's name, so that every call gives the same values."""
    module_name, _, leaf = name.rpartition(".")
    layer = copy.deepcopy(model.get_submodule(module_name))
    state = {key: empty(tuple(value.shape), torch.float32) for key, value in layer.named_parameters()}
    layer.load_state_dict(state, assign=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(zlib.crc32(module_name.encode()))
        if isinstance(layer, torch.nn.LayerNorm | torch.nn.RMSNorm):
            layer.reset_parameters()
        initialise_layer(module_name, layer)
    return cast(layer.get_parameter(leaf).detach(), dtype)
