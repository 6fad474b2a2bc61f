"""The miniature's VAE takes oneDNN's conv3d on a CPU, in its own encode and decode alone, with the pictures it had."""

from __future__ import annotations

import comfy.sd
import torch
from graph import pack
from stack import miniature
from torch.utils._python_dispatch import TorchDispatchMode


class Kernels(TorchDispatchMode):
    """The operators of the 3D convolutions that ran."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "conv" in str(func) and args[0].ndim == 5:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def check_the_miniatures_vae_takes_onednn():
    checkpoint = pack("contextanyone_core.weights.checkpoint")
    kind = pack("contextanyone_core.weights.naming").VAE
    path = pack("contextanyone_core.model_specs").MINIATURE / "vae.safetensors"
    plain = comfy.sd.VAE(sd=checkpoint.load_tensors(path, kind=kind))
    frames = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    results, kernels = [], []
    for vae in (miniature()[2], plain):
        with torch.inference_mode(), Kernels() as ran:
            latents = vae.encode(frames)
            results.append((latents, vae.decode(results[0][0] if results else latents)))
        kernels.append(ran.found)
    assert kernels == [{"aten.mkldnn_convolution.default"}, {"aten.conv3d.default"}], kernels
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() < 1e-5, (ours - theirs).abs().max()
