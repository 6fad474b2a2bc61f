"""Activation checkpointing of the transformer's blocks: less memory for some of the work done twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, autocast
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from contextanyone_core.model.blocks import TransformerBlock
from contextanyone_core.model.precision import under_autocast
from contextanyone_core.model.transformer import ContextAnyoneTransformer

Recompute = Literal["none", "full", "selective"]
_Result = TypeVar("_Result")

_ATTENTION = {
    operation.default
    for operation in (
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    )
}


def recompute_blocks(transformer: ContextAnyoneTransformer, kind: Recompute) -> None:
    """Let the backward pass compute the inside of each block again instead of keeping it.

    Args:
        kind: `full` stores a block's inputs only; `selective` also the outputs of fused attention, which are most of
            the work and little of the memory; `none` changes nothing.
    """
    if kind == "none":
        return
    contexts = {} if kind == "full" else {"context_fn": partial(create_selective_checkpoint_contexts, _keep_attention)}
    for block in transformer.blocks:
        assert isinstance(block, TransformerBlock)
        block.forward = _again(block.forward, contexts)  # type: ignore[method-assign]


def keeping_attention(block: TransformerBlock, x: Tensor, *inputs: Any, **options: Any) -> Any:
    """A block's `forward` under the checkpoint of `selective`, which a compiler must see in the same graph."""

    def region(x: Tensor) -> Any:
        return _without_kept_casts(partial(TransformerBlock.forward, block), x, *inputs, **options)

    if not torch.is_grad_enabled():
        return TransformerBlock.forward(block, x, *inputs, **options)
    contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
    return checkpoint(region, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _again(function: Callable[..., _Result], contexts: dict[str, Any]) -> Callable[..., _Result]:
    """The function under a checkpoint where gradients are wanted. Nothing random happens in a block."""

    def run(x: Tensor, *inputs: Any, **options: Any) -> _Result:
        if not torch.is_grad_enabled():
            return function(x, *inputs, **options)
        region = partial(_without_kept_casts, function, **options)
        return cast(_Result, checkpoint(region, x, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts))

    return run


def _without_kept_casts(function: Callable[..., _Result], x: Tensor, *inputs: Any, **options: Any) -> _Result:
    """The function with autocast, if it is on, casting weights anew at every use.

    Cached casts would exist in the first pass and not in the second, and occupy memory in between.
    """
    device = x.device.type
    if not under_autocast(x.device):
        return function(x, *inputs, **options)
    with autocast(device, torch.get_autocast_dtype(device), cache_enabled=False):
        return function(x, *inputs, **options)


def _keep_attention(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
