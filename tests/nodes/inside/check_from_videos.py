"""A network that the data pipeline's pairs trained, in the nodes: the latents that the headless pipeline gives."""

from __future__ import annotations

import comfy.utils
import graph
import numpy as np
import torch
from check_trained_lora import place
from graph import call, pack
from PIL import Image
from stack import ksampler, largest, miniature

TOLERANCE = 1e-4
FIRST, LATER = "A person with red hair.", "The same person is waving at the beach."


def check_the_nodes_give_the_headless_clip():
    expected = comfy.utils.load_torch_file(str(graph.DATA / "from_videos.safetensors"))
    transformer, vae_name = (f"from_videos_{name}.safetensors" for name in ("transformer", "vae"))
    (model,) = call("ContextAnyoneLoader", model_name=place("diffusion_models", transformer), weight_dtype="default")
    (vae,) = call("VAELoader", vae_name=place("vae", vae_name))
    _, clip, _, clip_vision = miniature()
    picture = torch.from_numpy(np.asarray(Image.open(graph.DATA / "reference.png").convert("RGB")).copy())[None] / 255
    with torch.inference_mode():
        reference = tuple(pack("nodes._comfy.references").take_pictures(picture, None, vae, clip_vision))
    positive, negative = call("ContextAnyonePrompt", clip=clip, first=FIRST, later=LATER, negative="")
    size = {"width": 64, "height": 48, "length": 5, "batch_size": 1, "emphasis": 1.0, "gap": 0.0}
    given = {"model": model, "positive": positive, "negative": negative, "reference": reference}
    scale = model.model.config.cfg_scale
    latents = ksampler(*call("ContextAnyoneApply", **given, **size), cfg=scale)
    assert largest((latents - expected["clip"]) / expected["std"]) < TOLERANCE
    assert bool(torch.isfinite(call("VAEDecode", samples={"samples": latents}, vae=vae)[0]).all())
