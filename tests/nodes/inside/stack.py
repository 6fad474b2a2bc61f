"""The miniature as native objects, loaded once, and the nodes in the order of a graph, for the checks on sampling."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import Any

import comfy.utils
import torch
from graph import call, pack

comfy.utils.set_progress_bar_global_hook(None)  # nodes are called outside of a prompt here: nobody to report to

FIRST = "A person (with red hair)."
LATER = "The same person is waving at the beach (at sunset:1.5)."
PICTURE = "red_hair_bag_teal_shirt.png"
OTHER_VIEW = "red_hair_bag_teal_shirt_other_view.png"
SIZE = {"width": 64, "height": 48, "length": 5}


@functools.cache
def miniature() -> tuple[Any, Any, Any, Any]:
    return call("ContextAnyoneMiniatureLoader")


def references(*pictures: str) -> tuple[Any, ...]:
    """A chain of ContextAnyone Reference, without its preview (that needs a running prompt)."""
    _, _, vae, clip_vision = miniature()
    taken: list[Any] = []
    with torch.inference_mode():
        for name in pictures:
            (image,) = call("ContextAnyoneExamplePicture", picture=name)
            taken += pack("nodes._comfy.references").take_pictures(image, None, vae, clip_vision)
    return tuple(taken)


def applied(
    model: Any = None, pictures: tuple[str, ...] = (PICTURE,), later: str = LATER, negative: str = "", **changed: Any
) -> tuple[Any, Any, Any, Any]:
    """What ContextAnyone Prompt and Apply ContextAnyone give for a graph of the miniature."""
    own, clip, _, _ = miniature()
    plus, minus = call("ContextAnyonePrompt", clip=clip, first=FIRST, later=later, negative=negative)
    settings = {**SIZE, "batch_size": 1, "emphasis": 1.0, "gap": 0.0} | changed
    given = {"reference": references(*pictures)} if pictures else {}
    return call(
        "ContextAnyoneApply", model=own if model is None else model, positive=plus, negative=minus, **given, **settings
    )


def ksampler(model: Any, positive: Any, negative: Any, latent: Any, **changed: Any) -> torch.Tensor:
    """Latents of the stock KSampler."""
    settings = {"seed": 7, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    result = call(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **settings | changed
    )
    return result[0]["samples"]


@contextmanager
def without_cache():
    """Every call encodes its references anew."""
    run = pack("nodes._comfy.run").SamplingRun
    before = run.cache
    run.cache = lambda self, references, like, encode: encode(references.inputs.to(like.device, like.dtype))
    try:
        yield
    finally:
        run.cache = before


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())
