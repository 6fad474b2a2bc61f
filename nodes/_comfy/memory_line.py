"""One line on whether a MODEL fits the card at hand: at 832 x 480 and 81 frames, with one reference."""

from __future__ import annotations

import math

import comfy.model_management

from ...contextanyone_core.model_specs import is_full_size
from ...contextanyone_core.runtime.fits import GIB
from ...contextanyone_core.runtime.memory import CLIP_TOKENS
from ...contextanyone_core.runtime.options import FULL_SIZE
from .types import Model

_SIZE = "832 x 480, 81 frames, one picture"


def memory_line(model: Model) -> tuple[str, bool]:
    """The line, "" for a miniature, and whether everything fits."""
    inner, device = model.model, model.load_device
    config = inner.config
    if not is_full_size(config.text_len):
        return "", True
    if comfy.model_management.is_device_cpu(device):
        return f"There is no GPU: {_SIZE} takes hours. The miniature (workflow 01) takes half a minute.", False
    weights = model.model_size()
    one = [1, math.prod(FULL_SIZE.shape.picture.latents_shape(config)), max(1, CLIP_TOKENS * (config.image_dim or 0))]
    working = inner.memory_required(list(FULL_SIZE.shape.latents_shape(config)), {"references": [one]})
    total = comfy.model_management.get_total_memory(device)
    fits = weights + working <= 0.9 * total
    end = "fits." if fits else "ComfyUI will move weights in every step, which is slower; fewer frames or fp8 help."
    needs = f"{weights / GIB:.1f} GiB of weights and {working / GIB:.1f} of a pass"
    return f"{_SIZE}: {needs}, of {total / GIB:.1f} on this card: {end}", fits
