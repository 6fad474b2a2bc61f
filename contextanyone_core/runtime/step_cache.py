"""First-block cache (diffusers' hooks): where the first block says nothing new, the others are not asked again.

In every pass the first block runs. If what it adds has changed by less than a threshold since the last pass that was
computed whole, in the mean and relative to its size, the other blocks add what they added then.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from ..errors import InputError
from ..late_import import host_class
from ..model.blocks import TransformerBlock
from ..model.transformer import ContextAnyoneTransformer

_HOOKS = "diffusers.hooks"


def cache_steps(transformer: ContextAnyoneTransformer, threshold: float) -> None:
    """Put the cache on a transformer; from then on every pass is named by `named_pass`.

    Args:
        transformer: stays as it is but for its blocks' `forward`.
        threshold: relative change of the first block's update up to which a pass is skipped.

    Raises:
        InputError: the transformer has fewer than two blocks.
        MissingDependencyError: diffusers is not installed.
    """
    if len(transformer.blocks) < 2:
        raise InputError("The transformer has one block; a step cache needs others to skip. Leave the step cache out.")
    metadata = host_class(f"{_HOOKS}._helpers", "TransformerBlockMetadata")
    # diffusers' hooks look for an argument named hidden_states; ours is the first, x
    described = metadata(return_hidden_states_index=0, _cached_parameter_indices={"hidden_states": 0})
    host_class(f"{_HOOKS}._helpers", "TransformerBlockRegistry").register(TransformerBlock, described)
    config = host_class(f"{_HOOKS}.first_block_cache", "FirstBlockCacheConfig")(threshold=threshold)
    host_class(f"{_HOOKS}.first_block_cache", "apply_first_block_cache")(transformer, config)


def named_pass(transformer: ContextAnyoneTransformer, name: str) -> AbstractContextManager[None]:
    """What runs inside is the pass `name` of a step: it is compared with the same pass of earlier steps only."""
    context: AbstractContextManager[None] = host_class("diffusers.models.cache_utils", "CacheMixin").cache_context(
        transformer, name
    )
    return context


def forget_steps(transformer: ContextAnyoneTransformer) -> None:
    """Forget what earlier steps left: at the end of a run."""
    registry = host_class(f"{_HOOKS}.hooks", "HookRegistry").check_if_exists_or_initialize(transformer)
    registry.reset_stateful_hooks()
