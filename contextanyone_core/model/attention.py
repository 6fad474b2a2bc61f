"""Self-, cross- and Emphasize-Attention with Wan's parameter names.

The layers (`ops`: torch.nn, or ComfyUI's operations) and the attention kernel (`AttentionFunction`) are injected. There
is no attention mask: which tokens attend to which is determined by the keys that are passed, so that fused kernels can
be used.

Shapes in the bodies: b samples, n tokens, c channels = h heads x d, r references. `kv` are keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .precision import normed
from .regions import TextGuide
from .rope import RotaryTable, apply_rotary

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q (B, Lq, C), k (B, Lk, C), v (B, Lk, C), heads) -> (B, Lq, C)."""


class KeysValues(NamedTuple):
    """Keys and values, each (B, tokens, C); keys are normed, and rotated where the module has rotary positions."""

    keys: Tensor
    values: Tensor


def torch_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention through torch's fused kernels; shapes as in `AttentionFunction`."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class Projections(nn.Module):
    """Base of the three attentions: q, k, v and o projections with RMS-normed q and k (Wan 2.1).

    If `rotary` tables are given, they rotate queries and keys. Normed and rotated tensors are cast back to the values'
    dtype, so that the kernel gets a single dtype under mixed precision.
    """

    def __init__(self, dim: int, heads: int, eps: float, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.q = ops.Linear(dim, dim, **factory)
        self.k = ops.Linear(dim, dim, **factory)
        self.v = ops.Linear(dim, dim, **factory)
        self.o = ops.Linear(dim, dim, **factory)
        self.norm_q = ops.RMSNorm(dim, eps=eps, elementwise_affine=True, **factory)
        self.norm_k = ops.RMSNorm(dim, eps=eps, elementwise_affine=True, **factory)

    def queries(self, x: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """Normed, rotated queries (B, tokens, C) of x (B, tokens, C)."""
        projected = self.q(x)
        return self._rotated(normed(self.norm_q, projected), rotary).to(projected.dtype)

    def keys_values(self, x: Tensor, rotary: RotaryTable | None = None) -> KeysValues:
        """Normed, rotated keys and the values of x (B, tokens, C)."""
        values = self.v(x)
        return KeysValues(self._rotated(normed(self.norm_k, self.k(x)), rotary).to(values.dtype), values)

    def _rotated(self, x: Tensor, rotary: RotaryTable | None) -> Tensor:
        if rotary is None:
            return x
        split = rearrange(x, "b n (h d) -> b n h d", h=self.heads)
        return rearrange(apply_rotary(split, rotary), "b n h d -> b n (h d)")


class SelfAttention(Projections):
    """Self-attention of either stream; the caller passes the keys and values that the queries attend to."""

    def attend(self, queries: Tensor, kv: KeysValues, attention: AttentionFunction) -> Tensor:
        """Attention of queries (B, tokens, C) to `kv`, through the output projection: (B, tokens, C)."""
        out: Tensor = self.o(attention(queries, *kv, self.heads))
        return out

    def attend_separately(
        self, queries: Tensor, kv: KeysValues, lengths: Sequence[int], attention: AttentionFunction
    ) -> Tensor:
        """Attention within each of several sequences that are concatenated along the tokens: (B, tokens, C).

        Sequences of equal length are folded into the batch (one kernel call, no copy); others take one call each.

        Args:
            queries, kv: (B, sum of lengths, C).
            lengths: number of tokens of each sequence.
        """
        if len(set(lengths)) == 1:
            q, k, v = (rearrange(x, "b (r n) c -> (b r) n c", n=lengths[0]) for x in (queries, *kv))
            attended = rearrange(attention(q, k, v, self.heads), "(b r) n c -> b (r n) c", r=len(lengths))
        else:
            pieces = zip(*(torch.split(x, list(lengths), dim=1) for x in (queries, *kv)), strict=True)
            attended = torch.cat([attention(q, k, v, self.heads) for q, k, v in pieces], dim=1)  # b (sum of lengths) c
        out: Tensor = self.o(attended)
        return out


class CrossAttention(Projections):
    """Attention to the text and, with a CLIP branch, to the CLIP tokens through their own keys and values (Wan I2V)."""

    def __init__(self, dim: int, heads: int, eps: float, image: bool, ops: Any, **factory: Any) -> None:
        super().__init__(dim, heads, eps, ops, **factory)
        if image:
            self.k_img = ops.Linear(dim, dim, **factory)
            self.v_img = ops.Linear(dim, dim, **factory)
            self.norm_k_img = ops.RMSNorm(dim, eps=eps, elementwise_affine=True, **factory)

    def image_keys_values(self, tokens: Tensor) -> KeysValues:
        """Keys and values of embedded CLIP tokens (B, N, C)."""
        values = self.v_img(tokens)
        return KeysValues(normed(self.norm_k_img, self.k_img(tokens)).to(values.dtype), values)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        image: KeysValues | None,
        attention: AttentionFunction,
        guide: TextGuide | None = None,
    ) -> Tensor:
        """Attention of x (B, tokens, C) to the text (B, text_len, C) and, optionally, to CLIP keys and values.

        With a guide, a token that shows the person attends to the whole text, a token of the background to the text
        without the person's name; in between, the two results are mixed (`regions`).
        """
        queries, text_kv = self.queries(x), self.keys_values(text)
        attended = attention(queries, *text_kv, self.heads)
        if guide is not None:
            attended = self._mixed_by_region(attended, queries, text_kv, guide, attention)
        if image is not None:
            attended = attended + attention(queries, *image, self.heads)
        out: Tensor = self.o(attended)
        return out

    def _mixed_by_region(
        self, attended: Tensor, queries: Tensor, text_kv: KeysValues, guide: TextGuide, attention: AttentionFunction
    ) -> Tensor:
        """person * attention to the whole text + (1 - person) * attention to the text without the name."""
        person = guide.person.to(attended.dtype)
        for videos, tokens in guide.groups:
            whole, q, share, *kv = (x if videos is None else x[videos] for x in (attended, queries, person, *text_kv))
            keys, values = (x.gather(1, tokens[:, :, None].expand(-1, -1, x.shape[2])) for x in kv)
            mixed = torch.lerp(attention(q, keys, values, self.heads), whole, share)
            attended = mixed if videos is None else attended.index_copy(0, videos, mixed)
        return attended


class EmphasizeAttention(Projections):
    """Video tokens attend to the reference stream of the same block a second time (the paper's Emphasize-Attention).

    Zero at initialisation through `o`; the caller multiplies it by `emphasis`.
    """

    # Paper: its formula is not stated. Own q, k, v and o; queries from the video, keys and values from the reference
    # stream of the same block; the rotary positions of self-attention; zero-initialised output, no learned gate.

    def forward(self, x: Tensor, kv: KeysValues, rotary: RotaryTable, attention: AttentionFunction) -> Tensor:
        """Attention of x (B, tokens, C) to the references' keys and values: (B, tokens, C)."""
        out: Tensor = self.o(attention(self.queries(x, rotary), *kv, self.heads))
        return out
