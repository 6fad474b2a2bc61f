"""Numerical fingerprint of a cell's code: a cached result is valid as long as it does not change.

The fingerprint is the losses of three fixed batches on a small network of the cell's variant, so refactoring does not
invalidate results. It is computed in float32, and compared with a tolerance for differences between processors.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from evaluation.ablation.alignment import ReferenceAlignment
from evaluation.ablation.part import Settings
from evaluation.ablation.vace import with_place
from evaluation.ablation.variants import as_variant
from training.parts.objective import EncodedClips, draw, loss_terms

_TOLERANCE = 1e-4
_SMALL = ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len")


def fingerprint(settings: Settings) -> list[float]:
    """Losses of three fixed batches: the video and reference terms of each, in turn."""
    tiny = ContextAnyoneConfig.tiny()
    own = {key: value for key, value in settings.network.items() if key not in _SMALL}
    image_dim = None if own.pop("image_dim", tiny.image_dim) is None or settings.one_stream else tiny.image_dim
    emphasize = bool(own.pop("emphasize", True)) and not settings.one_stream
    config = replace(tiny, image_dim=image_dim, emphasize=emphasize, **own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = as_variant(ContextAnyoneTransformer(config), settings.variant)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        numbers: list[float] = []
        for seed in range(3):
            numbers += _losses(network, settings, seed)
    return [round(number, 6) for number in numbers]


def agree(one: list[float], two: list[float]) -> bool:
    """Whether two fingerprints are equal within the tolerance."""
    return len(one) == len(two) and all(
        abs(a - b) <= _TOLERANCE * max(1.0, abs(b)) for a, b in zip(one, two, strict=True)
    )


@torch.no_grad()
def _losses(network: ContextAnyoneTransformer, settings: Settings, seed: int) -> list[float]:
    generator, config = torch.Generator().manual_seed(seed), network.config
    shapes = ((2, 16, 2, 4, 4), (2, 1, 2, 4, 4), (2, 16, 1, 4, 4), (2, 5, config.image_dim or 1))
    latents, weights, references, tokens = (torch.randn(shape, generator=generator) for shape in shapes)
    weights = weights.abs()
    ground_truth = settings.reconstruct == "target"
    clips = EncodedClips(
        latents,
        weights,
        references,
        None if config.image_dim is None else tokens,
        target=latents[:, :, :1] if ground_truth else references,
        target_weights=weights[:, :, :1] if ground_truth else None,
    )
    if settings.variant == "vace":
        clips = with_place(clips)
    alignment = ReferenceAlignment(network, tokens.shape[-1]) if settings.variant == "aligned" else None
    draws = draw(settings, clips, generator)
    if settings.variant == "text_only":
        draws = replace(draws, reference=None)
    texts = torch.randn((2, 2, config.text_len, config.text_dim), generator=generator)
    terms = loss_terms(network, settings, clips, draws, (texts[0], None if draws.reference is None else texts[1]))
    found = [terms.total, terms.video, *([] if terms.reference is None else [terms.reference])]
    if alignment is not None and draws.reference is not None:
        found.append(alignment(tokens, draws.sigma))
    return [float(term.mean()) for term in found]
