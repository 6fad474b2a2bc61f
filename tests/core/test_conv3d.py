"""conv3d of one clip by oneDNN: the values and gradients of torch's, in the VAE and nowhere else."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from contextanyone_core.encoders.vae import VideoVAE, build_vae, load_vae, mini_vae_config
from contextanyone_core.generation.pipeline import MINIATURE
from contextanyone_core.runtime.conv3d import OneDnnConv3d, conv3d

SLOW, ONEDNN = "aten.convolution.default", "aten.mkldnn_convolution.default"


class Convolutions(TorchDispatchMode):
    """The operators by which 3D convolutions of one clip below this context ran."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func) and args[0].ndim == 5:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def clip(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(3, 6), st.integers(3, 9), st.integers(3, 9)),
    st.integers(1, 4),
    st.sampled_from([(1, 1, 1), (3, 3, 3), (3, 1, 1), (1, 3, 3)]),
    st.sampled_from([1, (2, 1, 1), (1, 2, 2)]),
    st.sampled_from([0, 1, (0, 1, 1)]),
    st.booleans(),
)
def test_values_and_gradients_are_those_of_torch(shape, out, kernel, stride, padding, bias):
    inputs = [clip(*shape), clip(out, shape[1], *kernel, seed=1), clip(out, seed=2) if bias else None]
    results = []
    for convolve in (torch.conv3d, conv3d):
        given = [None if value is None else value.clone().requires_grad_() for value in inputs]
        value = convolve(*given, stride, padding)
        value.square().sum().backward()
        results.append([value.detach(), *(v.grad for v in given if v is not None)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_which_inputs_it_takes():
    one, weight = clip(1, 4, 3, 8, 8), clip(4, 4, 3, 3, 3)
    cases = [
        (one, weight, {}, ONEDNN),
        (one, weight, {"padding": "same"}, SLOW),
        (one.expand(2, -1, -1, -1, -1), weight, {}, SLOW),
        (one.double(), weight.double(), {}, SLOW),
        (one.bfloat16(), weight.bfloat16(), {}, SLOW),
        (one[0], weight, {}, None),
    ]
    for x, kernel, options, operator in cases:
        with Convolutions() as ran:
            conv3d(x, kernel, **options)
        if operator is not None:
            assert ran.found == {operator}
    with torch.autocast("cpu", torch.bfloat16), Convolutions() as ran:
        assert conv3d(one, weight).dtype is torch.bfloat16
    assert ran.found == {SLOW}


def test_nothing_is_left_behind():
    layer, x = torch.nn.Conv3d(4, 4, 3), clip(1, 4, 3, 8, 8)
    for context, operator in ((nullcontext(), SLOW), (OneDnnConv3d(), ONEDNN), (nullcontext(), SLOW)):
        with context, Convolutions() as ran:
            layer(x)
        assert ran.found == {operator}
    with pytest.raises(RuntimeError, match="channels"), OneDnnConv3d():
        layer(x[:, :2])
    with Convolutions() as ran:
        layer(x)
    assert ran.found == {SLOW}


@pytest.fixture(scope="module")
def vae():
    return VideoVAE(load_vae(MINIATURE / "vae.safetensors"))


@pytest.mark.parametrize("frames", [1, 9])
def test_the_miniatures_vae_gives_what_it_gave(vae, frames):
    shape = (frames, 64, 64)
    images = torch.nn.functional.interpolate(clip(1, 3, 1 + frames // 4, 8, 8), shape, mode="trilinear").clamp(-1, 1)
    with Convolutions() as ran:
        latents = vae.encode(images)
        decoded = vae.decode(latents)
    assert ran.found == {ONEDNN}
    mean, std = (
        torch.tensor(getattr(vae.vae.config, f"latents_{name}")).view(1, -1, 1, 1, 1) for name in ("mean", "std")
    )
    with torch.no_grad(), Convolutions() as ran:
        plain = (vae.vae.encode(images).latent_dist.mode() - mean) / std
        plain_decoded = vae.vae.decode(latents * std + mean).sample
    assert ran.found == {SLOW}
    assert (latents - plain).abs().max() < 1e-5
    assert (decoded - plain_decoded.clamp(-1, 1)).abs().max() < 1e-5


def test_tiles_and_bf16_go_as_before():
    small = build_vae(mini_vae_config() | {"base_dim": 4}).eval()
    latents = clip(1, 16, 2, 4, 4)
    for tiled in (False, True):
        with Convolutions() as ran:
            VideoVAE(small, tiled=tiled).decode(latents)
        assert ran.found == {ONEDNN}
    with Convolutions() as ran:
        VideoVAE(small.bfloat16()).decode(latents)
    assert ran.found == {SLOW}
