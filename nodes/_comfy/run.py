"""What lives for one sampling run: the reference cache, made and dropped around it.

Under a run the references are encoded once, for every sampler, number of steps and guidance, and kept as ContextAnyone
Cache says. While something changes weights within the run (hooks on conditionings), nothing is reused. Outside of a run
(a wrapper called directly) every call encodes anew: slower, and the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import torch

from ...contextanyone_core.model.losses import reconstruction
from ...contextanyone_core.model.references import ReferenceCache, ReferenceInputs
from ...contextanyone_core.model.rope import forget_tables
from ...contextanyone_core.runtime.reference_cache import CacheOptions, keep

CACHE = "contextanyone_cache"
"""Key of a MODEL's transformer options that holds `CacheOptions`."""
_RUN = "contextanyone_run"
_WRAPPER = "contextanyone"


@dataclass(frozen=True)
class KeyedReferences:
    """References as they are passed to the network.

    Attributes:
        inputs: of one sample; all of a batch have the same.
        key: hash of all of this; equal keys mean equal references.
    """

    inputs: ReferenceInputs
    key: str


class SamplingRun:
    """The caches of one run by reference key and device, and the reconstructed references.

    Attributes:
        reuse: whether a cache may serve a second call.
        options: how caches are kept.
        made: how many times references were encoded.
    """

    def __init__(self, *, reuse: bool) -> None:
        self.reuse = reuse
        self.options = CacheOptions()
        self.made = 0
        self._caches: dict[tuple[str, torch.device], ReferenceCache] = {}
        self._reconstructions: dict[str, list[torch.Tensor]] = {}

    def cache(
        self, references: KeyedReferences, like: torch.Tensor, encode: Callable[[ReferenceInputs], ReferenceCache]
    ) -> ReferenceCache:
        """The cache of references in the dtype of `like`, encoded where it is not there yet: on each card its own."""
        place = (references.key, like.device)
        if self.reuse and place in self._caches:
            return self._caches[place]
        inputs = references.inputs.to(like.device, like.dtype)
        cache = encode(inputs)
        self.note(references.key, inputs, cache.outputs)
        if self.reuse:
            cache = self._caches[place] = keep(cache, self.options)
        return cache

    def note(self, key: str, inputs: ReferenceInputs, outputs: list[torch.Tensor]) -> None:
        """Note that references were encoded, and what the reference stream made of them."""
        self.made += 1
        pairs = zip(inputs.latents, outputs, strict=True)
        self._reconstructions[key] = [reconstruction(fed.float(), out.float()) for fed, out in pairs]

    def reconstructions(self, key: str) -> list[torch.Tensor]:
        """What the reference stream made of the references, normalised latents (1, 16, 1, h, w); empty if not run."""
        return self._reconstructions.get(key, [])

    def drop(self) -> None:
        """Free the caches, and the network's tables of positions: ComfyUI could neither see nor free them."""
        self._caches.clear()
        forget_tables()


def current_run(transformer_options: dict[str, Any]) -> SamplingRun:
    """The run that a call of the network belongs to."""
    run = transformer_options.get(_RUN)
    return run if isinstance(run, SamplingRun) else SamplingRun(reuse=False)


def with_runs(patcher: Any) -> Any:
    """Give a MODEL the wrapper that makes a run around every sampling; its clones inherit it."""
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patcher.add_wrapper_with_key(kind, _WRAPPER, _sample_in_a_run)
    return patcher


def _sample_in_a_run(executor: Any, noise: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    guider = executor.class_obj
    before, model = guider.model_options, guider.model_patcher.model
    hooked = (comfy.sampler_helpers.cond_has_hooks([[None, cond] for cond in conds]) for conds in guider.conds.values())
    planned, run = model.cache_options, SamplingRun(reuse=not any(hooked))
    model.cache_options = before.get("transformer_options", {}).get(CACHE, planned)
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    guider.model_options.setdefault("transformer_options", {})[_RUN] = run
    try:
        model.cache_options = run.options = _settled(model.cache_options, guider, noise)
        return executor(noise, *args, **kwargs)
    finally:
        guider.model_options, model.cache_options = before, planned
        run.drop()


def _settled(options: CacheOptions, guider: Any, noise: torch.Tensor) -> CacheOptions:
    """How this run keeps its caches; `auto` goes by the memory of the whole card, which does not change."""
    if options.device != "auto":
        return options
    patcher = guider.model_patcher
    working, _ = comfy.sampler_helpers.estimate_memory(patcher, list(noise.shape), guider.conds)
    total = comfy.model_management.get_total_memory(patcher.load_device)
    return options.settled(int(patcher.model_size() + working), int(total))
