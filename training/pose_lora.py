"""A run that taught Wan 2.1 T2V to follow poses, as one LoRA file for stock Wan T2V (`export.py --pose-lora`).

The file widens the patch embedding (`patch_embedding.reshape_weight`) and adds what the run trained, so that ComfyUI's
own loader, or `generate --lora`, makes Wan T2V the trained network without references.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.lora import PATCHES, Lora, save_lora
from contextanyone_core.weights.lora_updates import LowRank
from training.lora import differences, trained_lora
from training.parts.transformer_base import TransformerTraining
from training.patterns import matches
from training.trainable import TrainSettings

FILE = "pose_lora.safetensors"
_LOG = logging.getLogger(__name__)
_LACKING = {
    "Emphasize-Attention": ("*.emphasize_attn.*", "*.norm_emphasize.*"),
    "the CLIP branch": ("img_emb.*", "*_img.*"),
}
"""Parts that Wan 2.1 T2V lacks, by the patterns of `training.lora.NEW_PARTS`."""


def export_pose_lora(part: object, folder: Path, record: Mapping[str, Any], dtype: torch.dtype) -> Path:
    """Write a part's current weights as `pose_lora.safetensors`; the trained parts that it leaves out are logged.

    Args:
        part: of a run that started from a T2V network with condition channels that were still zero.
        record: for the file's header.

    Raises:
        InputError: the run has no such part or start, it trained blocks in full, or it follows no pose.
    """
    if not isinstance(part, TransformerTraining):
        raise InputError("--pose-lora: the run has no transformer; runs of the parts manifest and transformer have.")
    if part.context.init_from is None:
        raise InputError("--pose-lora: the run has no init.from; it must start from Wan 2.1 T2V, widened.")
    lora, left_out = pose_lora(part.transformer, part.settings.train, part.start())
    header = {"record": json.dumps(dict(record)), "left_out": json.dumps(left_out)}
    save_lora(folder / FILE, lora, dtype=dtype, extra=header)
    if left_out:
        _LOG.warning(
            "%s leaves out what the run trained and stock Wan lacks: %s; for references use the network itself.",
            FILE,
            " and ".join(left_out),
        )
    return folder / FILE


def pose_lora(
    transformer: ContextAnyoneTransformer, settings: TrainSettings, start: ContextAnyoneTransformer
) -> tuple[Lora, list[str]]:
    """The LoRA that makes stock Wan T2V the trained network without references, float32, on the CPU.

    Args:
        transformer: the trained network. settings: what of it was trained.
        start: the network that the training started from; its condition channels must be zero, so that the rest of it
            is Wan's own.

    Returns: the LoRA, and the titles of the parts that were trained and are left out, since stock Wan lacks them.

    Raises:
        InputError: there are no condition channels, they were not zero at the start or still are, or blocks were
            trained in full.
    """
    in_dim, before = start.config.in_dim, start.get_parameter(PATCHES).detach().cpu().float()
    if not start.config.condition_dim:
        raise InputError("--pose-lora: the network has no condition channels, so it follows no pose.")
    if before[:, in_dim:].any():
        raise InputError(
            "--pose-lora: init.from has trained condition channels, so the rest of it need not be stock Wan T2V; the "
            "run must start from a file of contextanyone init --condition."
        )
    changes = _changes(transformer, settings, start)
    lacking = [name for name in (*changes.updates, *changes.differences) if _lacking(name) is not None]
    updates = {name: update for name, update in changes.updates.items() if name not in lacking}
    full_changes = {name: change for name, change in changes.differences.items() if name not in lacking}
    patches = full_changes.pop(PATCHES, torch.zeros_like(before))
    if not patches[:, in_dim:].any():
        raise InputError(
            f"--pose-lora: the condition channels are still zero, so the network follows no pose; train {PATCHES}."
        )
    if full := [name for name in full_changes if name.startswith("blocks.")]:
        raise InputError(
            f"--pose-lora: the run trained {len(full)} tensors of the blocks in full, such as {full[0]}, and a LoRA is "
            "a low-rank change of them; train with part.train.lora, and patch_embedding.* in its full."
        )
    updates[PATCHES.removesuffix(".weight")] = _exact(patches, in_dim)
    titles = [title for title in _LACKING if title in {_lacking(name) for name in lacking}]
    return replace(changes, updates=updates, differences=full_changes, patch_shape=tuple(patches.shape)), titles


def _changes(transformer: ContextAnyoneTransformer, settings: TrainSettings, start: ContextAnyoneTransformer) -> Lora:
    before, trained = dict(start.named_parameters()), transformer.state_dict()
    if settings.lora is not None:
        return trained_lora(trained, settings.lora, before)
    names = [name for name, parameter in transformer.named_parameters() if parameter.requires_grad]
    return Lora("", {}, differences(names, {name: name for name in names}, trained, before))


def _lacking(name: str) -> str | None:
    """The title of the part of `_LACKING` that a module or parameter belongs to."""
    found = (title for title, patterns in _LACKING.items() if matches(f"{name}.", patterns))
    return next(found, None)


def _exact(change: Tensor, old: int) -> LowRank:
    """A change (dim, C, 1, 2, 2) as an update that holds it exactly: one rank for each input that it changes.

    Inputs of the first `old` channels are left out if none of them changes: rank 128 of 192 for 32 new of 48 channels.
    """
    flat = change.flatten(1)
    first = flat.shape[1] * old // change.shape[1]
    kept = flat if flat[:, :first].any() else flat[:, first:]
    return LowRank(torch.eye(flat.shape[1])[-kept.shape[1] :], kept)
