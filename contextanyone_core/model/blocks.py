"""The parts of the transformer: block, head and CLIP embedding, with Wan's parameter names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import ContextAnyoneConfig
from .attention import AttentionFunction, CrossAttention, EmphasizeAttention, KeysValues, SelfAttention
from .precision import full_precision, normed
from .regions import TextGuide
from .rope import RotaryTable

Mode = Literal["video", "reference", "both"]
"""Which of the two streams runs through a block: one of them, or the reference's and then the video's."""


class BlockCache(NamedTuple):
    """Keys and values of the references in one block; None where the model or the run lacks the branch."""

    self_attn: KeysValues
    emphasize: KeysValues | None
    image: KeysValues | None


class Stream(NamedTuple):
    """Inputs of a stream beside its tokens; they are the same for every block.

    Attributes:
        modulation: (B, 6, C), the projected timesteps, float32 where the weights are.
        text: (B, text_len, C), the embedded prompt.
        rotary: of all tokens of the stream.
        lengths: number of tokens of each sequence that attends only to itself: one per reference.
        guide: regions of the video for the text cross-attention; None without.
        textless: number of tokens at the end of the stream that skip the cross-attention.
    """

    modulation: Tensor
    text: Tensor
    rotary: RotaryTable
    lengths: Sequence[int]
    guide: TextGuide | None = None
    textless: int = 0


class ReferenceStream(NamedTuple):
    """The reference stream before a block.

    Attributes:
        tokens: (B, tokens of all references, C).
        stream: its other inputs.
        image: embedded CLIP tokens (B, N, C) of all references; None without the CLIP branch.
    """

    tokens: Tensor
    stream: Stream
    image: Tensor | None


class TransformerBlock(nn.Module):
    """Self-attention, text (and CLIP) cross-attention, Emphasize-Attention, feed-forward."""

    def __init__(self, config: ContextAnyoneConfig, ops: Any, **factory: Any) -> None:
        super().__init__()
        dim, heads, eps = config.dim, config.num_heads, config.eps
        self.norm1 = ops.LayerNorm(dim, eps=eps, elementwise_affine=False, **factory)
        self.self_attn = SelfAttention(dim, heads, eps, ops, **factory)
        self.norm3 = ops.LayerNorm(dim, eps=eps, elementwise_affine=True, **factory)
        self.cross_attn = CrossAttention(dim, heads, eps, config.image_dim is not None, ops, **factory)
        self.norm_emphasize = self.emphasize_attn = None
        if config.emphasize:
            self.norm_emphasize = ops.LayerNorm(dim, eps=eps, elementwise_affine=True, **factory)
            self.emphasize_attn = EmphasizeAttention(dim, heads, eps, ops, **factory)
        self.norm2 = ops.LayerNorm(dim, eps=eps, elementwise_affine=False, **factory)
        self.ffn = nn.Sequential(
            ops.Linear(dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            ops.Linear(config.ffn_dim, dim, **factory),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, dim, **factory))

    def forward(self, x: Tensor, stream: Stream, *inputs: Any, mode: Mode = "video") -> Any:
        """Dispatch by `mode` to `denoise_video`, `encode_reference` or `run_both`: their arguments and results.

        There is one entry for all, because hooks (offloading, FSDP, step caches) are attached to `forward`.
        """
        run: Any = {"video": self.denoise_video, "reference": self.encode_reference, "both": self.run_both}[mode]
        return run(x, stream, *inputs)

    def run_both(
        self, x: Tensor, stream: Stream, reference: ReferenceStream, emphasis: float, attention: AttentionFunction
    ) -> tuple[Tensor, Tensor]:
        """Run the reference stream, then the video stream x (B, tokens, C), in one call.

        Weights that are gathered (FSDP) or copied to the device for each call are needed once for both. Keys and
        values of the references are freed with the call.

        Returns:
            The tokens of the video and of the references after the block.
        """
        tokens, own, image = reference
        tokens, cache = self.encode_reference(tokens, own, image, attention)
        return self.denoise_video(x, stream, cache, emphasis, attention), tokens

    def encode_reference(
        self, x: Tensor, stream: Stream, image: Tensor | None, attention: AttentionFunction
    ) -> tuple[Tensor, BlockCache]:
        """Run the reference stream through the block.

        Args:
            x: (B, tokens of all references end to end, C).
            image: embedded CLIP tokens (B, N, C); projected here, attended to by the video stream only.

        Returns:
            The stream after the block, and the keys and values that the video attends to.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(stream)  # each b 1 c
        h = _modulated(self.norm1, x, shift1, scale1)  # b (r n) c
        own = self.self_attn.keys_values(h, stream.rotary)
        queries = self.self_attn.queries(h, stream.rotary)
        x = _gated(x, self.self_attn.attend_separately(queries, own, stream.lengths, attention), gate1)
        x = x + self.cross_attn(normed(self.norm3, x), stream.text, None, attention)
        emphasize = None
        if self.norm_emphasize is not None and self.emphasize_attn is not None:
            # Paper: which features of the reference are emphasized is not stated: those at the position in the block
            # where the video queries them, after both attentions, through the same norm.
            emphasize = self.emphasize_attn.keys_values(normed(self.norm_emphasize, x), stream.rotary)
        x = _gated(x, self.ffn(_modulated(self.norm2, x, shift2, scale2)), gate2)
        clip = None if image is None else self.cross_attn.image_keys_values(image)
        return x, BlockCache(own, emphasize, clip)

    def denoise_video(
        self, x: Tensor, stream: Stream, cache: BlockCache | None, emphasis: float, attention: AttentionFunction
    ) -> Tensor:
        """Run the video stream x (B, tokens, C) through the block; `cache` None is a block without references."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(stream)  # each b 1 c
        h = _modulated(self.norm1, x, shift1, scale1)  # b n c
        kv = self.self_attn.keys_values(h, stream.rotary)
        if cache is not None:
            pairs = zip(kv, _expanded(cache.self_attn, len(x)), strict=True)
            kv = KeysValues(*(torch.cat(pair, dim=1) for pair in pairs))  # b (n + reference tokens) c
        queries = self.self_attn.queries(h, stream.rotary)
        x = _gated(x, self.self_attn.attend(queries, kv, attention), gate1)
        image = None if cache is None or cache.image is None else _expanded(cache.image, len(x))
        x = self._cross_attended(x, stream, image, attention)
        emphasized = None if cache is None or emphasis == 0 else cache.emphasize
        if emphasized is not None and self.norm_emphasize is not None and self.emphasize_attn is not None:
            h = normed(self.norm_emphasize, x)
            x = x + emphasis * self.emphasize_attn(h, _expanded(emphasized, len(x)), stream.rotary, attention)
        return _gated(x, self.ffn(_modulated(self.norm2, x, shift2, scale2)), gate2)

    def _cross_attended(
        self, x: Tensor, stream: Stream, image: KeysValues | None, attention: AttentionFunction
    ) -> Tensor:
        """x (B, tokens, C) after cross-attention to text and CLIP tokens; the last `stream.textless` tokens skip it."""
        last = x.shape[1] - stream.textless
        first = x[:, :last] if stream.textless else x
        first = first + self.cross_attn(normed(self.norm3, first), stream.text, image, attention, stream.guide)
        return torch.cat((first, x[:, last:]), dim=1) if stream.textless else first

    def _modulation(self, stream: Stream) -> tuple[Tensor, ...]:
        return _add_parameter(self.modulation, stream.modulation).chunk(6, dim=1)  # b 6 c -> six of b 1 c


class Head(nn.Module):
    """Output head: norm, modulation and projection from tokens to patches."""

    def __init__(self, config: ContextAnyoneConfig, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.norm = ops.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False, **factory)
        self.head = ops.Linear(config.dim, config.out_dim * math.prod(config.patch_size), **factory)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, **factory))

    def forward(self, x: Tensor, time_embeds: Tensor) -> Tensor:
        """x (B, tokens, C) and time_embeds (B, C) -> (B, tokens, out_dim * patch)."""
        shift, scale = _add_parameter(self.modulation, rearrange(time_embeds, "b c -> b 1 c")).chunk(2, dim=1)
        with full_precision(x.device):
            patches: Tensor = self.head(_modulated(self.norm, x, shift, scale))
        return patches


class ImageEmbedding(nn.Module):
    """CLIP tokens (B, N, image_dim) -> (B, N, dim), as Wan I2V's `img_emb`."""

    def __init__(self, image_dim: int, dim: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            ops.LayerNorm(image_dim, **factory),
            ops.Linear(image_dim, image_dim, **factory),
            nn.GELU(),
            ops.Linear(image_dim, dim, **factory),
            ops.LayerNorm(dim, **factory),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed the CLIP tokens."""
        embedded: Tensor = self.proj(tokens)
        return embedded


def _modulated(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift in float32, back in x's dtype."""
    return torch.addcmul(shift, norm(x.float()), 1 + scale).to(x.dtype)


def _gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate in float32, back in x's dtype."""
    return torch.addcmul(x.float(), update.float(), gate).to(x.dtype)


def _add_parameter(parameter: Tensor, x: Tensor) -> Tensor:
    """parameter + x in float32, on x's device (a host may keep its weights elsewhere)."""
    return parameter.to(x.device, torch.float32) + x.float()


def _expanded(kv: KeysValues, batch: int) -> KeysValues:
    """Keys and values of a batch of 1 or of `batch`, for `batch` samples."""
    return kv if len(kv.keys) == batch else KeysValues(*(x.expand(batch, -1, -1) for x in kv))
