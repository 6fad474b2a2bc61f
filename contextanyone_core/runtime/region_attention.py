"""Self-attention in which two regions attend to each other less, by one more channel of queries and keys.

The form (b) of mask-guided attention (AnimateAnywhere): no part of a generation uses it, as the text's form
(`model.regions`) costs less; it is here for measuring what that leaves to leak.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from ..errors import InputError
from ..model.attention import AttentionFunction, torch_attention
from .kernels import sage_attention

_PAD = 8  # channels that a head gets: fused kernels want a multiple of 8


def region_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    person: tuple[Tensor, Tensor],
    weight: float,
    attention: AttentionFunction = torch_attention,
) -> Tensor:
    """Attention in which a pair of tokens of different regions has `weight` times the odds: (B, Lq, C).

    Equal to a bias c (m (1 - n) + (1 - m) n) on the scores, c = log(weight), for a query of share m and a key of share
    n. What depends on the query alone cancels in the softmax; n c (1 - 2 m) remains, a product of one number of each.

    Args:
        q, k, v: (B, Lq, C) and (B, Lk, C), normed and rotated; keys of references follow the video's.
        heads: of C.
        person: (B, Lq) and (B, Lk), the person's share of queries and keys from 0 to 1; a reference's keys have 1.
        weight: above 0, at most 1; 1 is the plain attention.
        attention: the kernel; it is given heads that are 8 channels wider.

    Raises:
        InputError: another weight, or a kernel that only takes heads of certain widths.
    """
    if not 0 < weight <= 1:
        raise InputError(f"The weight between regions is {weight:g}; it must be above 0 and at most 1.")
    if attention is sage_attention:
        raise InputError("Attention sage takes heads of 64 or 128 channels, and regions make them wider; use sdpa.")
    if weight == 1:
        return attention(q, k, v, heads)
    width = q.shape[-1] // heads
    wide, (of_queries, of_keys) = width + _PAD, person
    queries = _widened(q * math.sqrt(wide / width), heads, 1 - 2 * of_queries)  # the kernel divides by sqrt(wide)
    keys = _widened(k, heads, math.log(weight) * math.sqrt(wide) * of_keys)
    read = attention(queries, keys, _widened(v, heads, torch.zeros_like(of_keys)), heads)
    return rearrange(read, "b n (h d) -> b n h d", h=heads)[..., :width].flatten(2)


def _widened(x: Tensor, heads: int, channel: Tensor) -> Tensor:
    """x (B, L, C) with a channel (B, L), and zeros behind it, in every head."""
    added = torch.nn.functional.pad(channel.to(x.dtype)[..., None], (0, _PAD - 1))
    split = rearrange(x, "b n (h d) -> b n h d", h=heads)
    return torch.cat([split, added[:, :, None].expand(-1, -1, heads, -1)], dim=-1).flatten(2)
