"""A bias between regions by one more channel: equal to the dense bias, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from contextanyone_core.errors import InputError
from contextanyone_core.model.attention import torch_attention
from contextanyone_core.runtime.kernels import sage_attention
from contextanyone_core.runtime.region_attention import region_attention

HEADS, WIDTH, VIDEO, REFERENCE = 3, 16, 20, 7


def tensors(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, length, HEADS * WIDTH, generator=generator, dtype=torch.float64)
        for length in (VIDEO, VIDEO + REFERENCE, VIDEO + REFERENCE)
    )
    shares = torch.rand(2, VIDEO, generator=generator, dtype=torch.float64)
    person = (shares, torch.cat([shares, torch.ones(2, REFERENCE, dtype=torch.float64)], dim=1))
    return [x.to(dtype).requires_grad_() for x in (q, k, v)], tuple(x.to(dtype) for x in person)


def dense(q, k, v, person, weight):
    m, n = person[0][:, None, :, None], person[1][:, None, None, :]
    bias = math.log(weight) * (m * (1 - n) + (1 - m) * n)
    split = (rearrange(x, "b n (h d) -> b h n d", h=HEADS) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(*split, attn_mask=bias), "b h n d -> b n (h d)")


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_the_dense_bias_with_its_gradients(dtype, tolerance, weight):
    found, wanted = [], []
    for kept, run in ((found, region_attention), (wanted, None)):
        (q, k, v), person = tensors(dtype)
        out = dense(q, k, v, person, weight) if run is None else run(q, k, v, HEADS, person, weight)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        kept += [out, q.grad, k.grad, v.grad]
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=tolerance, rtol=tolerance)


def test_hard_regions_attend_less_to_each_other_and_a_weight_of_one_is_plain():
    (q, k, v), _ = tensors(torch.float64)
    hard = (torch.arange(VIDEO) < 8).double().expand(2, -1)
    person = (hard, torch.cat([hard, torch.ones(2, REFERENCE).double()], dim=1))
    plain = torch_attention(q, k, v, HEADS)
    assert torch.equal(region_attention(q, k, v, HEADS, person, 1.0), plain)
    marked = torch.zeros_like(v)
    marked[:, VIDEO:] = 1  # what comes from the reference, whose keys are the person's
    less = region_attention(q, k, marked, HEADS, person, 0.1) / torch_attention(q, k, marked, HEADS)
    assert (less[:, 8:] < 1).all()
    assert (less[:, :8] > 1).all()


def test_what_cannot_be_is_refused_with_a_sentence():
    (q, k, v), person = tensors(torch.float32)
    for weight in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            region_attention(q, k, v, HEADS, person, weight)
    with pytest.raises(InputError, match=r"sage takes heads of 64 or 128.*use sdpa"):
        region_attention(q, k, v, HEADS, person, 0.1, sage_attention)
