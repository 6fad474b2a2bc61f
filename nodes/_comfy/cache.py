"""Where and how a MODEL keeps its reference cache: an option of the MODEL, which `run` reads."""

from __future__ import annotations

from ...contextanyone_core.runtime.reference_cache import CACHE_DEVICES, CACHE_DTYPES, CacheOptions
from .notes import note
from .references import config_of
from .run import CACHE
from .types import Model

DEVICES, DTYPES = list(CACHE_DEVICES), list(CACHE_DTYPES)


def with_cache(model: Model, device: str, dtype: str) -> tuple[Model, dict[str, list[str]] | None]:
    """The MODEL with its cache kept so, and the note of the node where the model has no cache.

    Raises:
        InputError: it is null, or another model.
    """
    config_of(model)
    if not model.model.has_cache:
        return model, note(
            "ContextAnyone Cache",
            "This model keeps nothing of its references: every pass computes them anew, as it was trained. The node "
            "changes nothing here.",
        )
    kept = model.clone()
    kept.model_options.setdefault("transformer_options", {})[CACHE] = CacheOptions(device, dtype)
    return kept, None
