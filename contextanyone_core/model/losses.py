"""The dual-guidance loss: video velocity and reference reconstruction (the paper's)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..shapes import check_same_shape


class DualGuidanceLoss(NamedTuple):
    """Per sample, each (B,), float32: total = video + reference_weight * reference; reference is 0 without one."""

    total: Tensor
    video: Tensor
    reference: Tensor


def reconstruction(reference_latents: Tensor, reference_output: Tensor) -> Tensor:
    """The reference stream's reconstruction: input latents - output of the head.

    Args:
        reference_latents: (B, C, 1, h, w), the input latents, noise included.
        reference_output: the transformer's output for them, the same shape.

    Raises:
        ShapeError: shapes differ.
    """
    # Paper: the form of the reconstruction is not stated. There is no factor sigma: with it, a clean reference
    # (sigma 0) would be its own reconstruction, and the term would have no gradient.
    check_same_shape("reference_output", reference_output.shape, reference_latents.shape)
    return reference_latents - reference_output


def dual_guidance_loss(
    velocity: Tensor,
    target: Tensor,
    reconstructions: Sequence[Tensor] = (),
    reference_targets: Sequence[Tensor] = (),
    *,
    reference_weight: float,
    video_mask: Tensor | None = None,
    reference_masks: Sequence[Tensor] | None = None,
) -> DualGuidanceLoss:
    """video velocity MSE + reference_weight * reference reconstruction MSE, per sample.

    Each term is averaged over its own tokens: a shared mean would make the weight depend on the clip's length. With
    masks (weights, at least 0) a term is sum(w * err) / sum(w); where the weights of a sample are all zero, its term
    is 0.

    Args:
        velocity, target: (B, C, T, h, w).
        reconstructions, reference_targets: one (B, C, 1, h, w) per reference, from `reconstruction`; none means the
            sample has no reference.
        reference_weight: the paper's lambda.
        video_mask: (B, 1, T, h, w) or the shape of velocity.
        reference_masks: one per reference, likewise.

    Raises:
        ShapeError: shapes, batches or numbers of references do not match.
        InputError: reference_weight is negative or not finite.
    """
    if not math.isfinite(reference_weight) or reference_weight < 0:
        raise InputError(f"reference_weight is {reference_weight}; it must be a finite number of at least 0.")
    video = per_sample_error([velocity], [target], None if video_mask is None else [video_mask])
    if not reconstructions and not reference_targets:
        return DualGuidanceLoss(video, video, torch.zeros_like(video))
    reference = per_sample_error(reconstructions, reference_targets, reference_masks)
    _require_batch("reconstructions", len(reference), len(video))
    return DualGuidanceLoss(video + reference_weight * reference, video, reference)


def per_sample_error(
    values: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor] | None = None
) -> Tensor:
    """Mean squared error per sample, over all elements of all tensors together: float32 (B,).

    Args:
        values, targets: tensors (B, ...) in pairs of one shape.
        masks: weights for each pair, broadcastable to it.

    Raises:
        ShapeError: shapes, batches or numbers of tensors do not match, or there is none.
    """
    if not values or len(values) != len(targets) or (masks is not None and len(masks) != len(values)):
        counts = f"{len(values)} predictions, {len(targets)} targets"
        raise ShapeError(f"{counts}{'' if masks is None else f', {len(masks)} masks'}; needed are as many of each.")
    total = weight = torch.zeros(values[0].shape[0], device=values[0].device)
    for index, (value, target) in enumerate(zip(values, targets, strict=True)):
        check_same_shape("a target", target.shape, value.shape)
        _require_batch("a prediction", len(value), len(values[0]))
        error = (value.float() - target.float()).square()
        weights = torch.ones_like(error) if masks is None else _expanded(masks[index], error)
        total = total + (error * weights).flatten(1).sum(1)
        weight = weight + weights.flatten(1).sum(1)
    return torch.where(weight > 0, total / weight.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def _require_batch(name: str, given: int, needed: int) -> None:
    if given != needed:
        raise ShapeError(f"The batch of {name} is {given}; it must be that of the others, {needed}.")


def _expanded(mask: Tensor, error: Tensor) -> Tensor:
    """The mask in the shape of the error, float32."""
    try:
        if mask.ndim == error.ndim:
            _require_batch("a mask", len(mask), len(error))
        return mask.float().expand_as(error)
    except RuntimeError as cause:
        raise ShapeError(f"A mask has shape {tuple(mask.shape)}; it must broadcast to {tuple(error.shape)}.") from cause
