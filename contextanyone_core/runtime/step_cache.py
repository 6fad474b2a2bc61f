"""First-block cache (diffusers' hooks): passes whose first block hardly changes reuse the other blocks' output.

The first block runs in every pass. If its residual has changed by less than a threshold since the last full pass (mean
absolute difference over mean), the other blocks are skipped, and their residual of that full pass is added again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from ..errors import InputError
from ..late_import import host_class
from ..model.blocks import TransformerBlock
from ..model.transformer import ContextAnyoneTransformer

_HOOKS = "diffusers.hooks"


def check_step_cache(transformer: ContextAnyoneTransformer) -> None:
    """Check that the transformer has blocks to skip.

    Raises:
        InputError: the transformer has fewer than two blocks.
    """
    if len(transformer.blocks) < 2:
        raise InputError("The transformer has one block; a step cache needs others to skip. Leave the step cache out.")


@contextmanager
def cached_steps(transformer: ContextAnyoneTransformer, threshold: float | None) -> Iterator[None]:
    """Context of the denoising steps of one run; each pass inside must be named by `named_pass`.

    References must be encoded before it: the hooks support the video stream only. On exit they are removed.

    Args:
        transformer: two blocks or more.
        threshold: relative change of the first block's residual below which the others are skipped; None caches
            nothing.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    if threshold is None:
        yield
        return
    metadata = host_class(f"{_HOOKS}._helpers", "TransformerBlockMetadata")
    # diffusers' hooks look for an argument named hidden_states; ours is the first, x
    described = metadata(return_hidden_states_index=0, _cached_parameter_indices={"hidden_states": 0})
    host_class(f"{_HOOKS}._helpers", "TransformerBlockRegistry").register(TransformerBlock, described)
    config = host_class(f"{_HOOKS}.first_block_cache", "FirstBlockCacheConfig")(threshold=threshold)
    registry = host_class(f"{_HOOKS}.hooks", "HookRegistry").check_if_exists_or_initialize(transformer)
    host_class(f"{_HOOKS}.first_block_cache", "apply_first_block_cache")(transformer, config)
    try:
        yield
    finally:
        for name in ("_FBC_LEADER_BLOCK_HOOK", "_FBC_BLOCK_HOOK"):
            registry.remove_hook(host_class(f"{_HOOKS}.first_block_cache", name))


def named_pass(transformer: ContextAnyoneTransformer, name: str) -> AbstractContextManager[None]:
    """Context of the pass `name` of a step: it is compared only with the same pass of earlier steps."""
    context: AbstractContextManager[None] = host_class("diffusers.models.cache_utils", "CacheMixin").cache_context(
        transformer, name
    )
    return context
