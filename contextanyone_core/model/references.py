"""What the transformer is given of references, and what it keeps of them between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention import KeysValues
from .blocks import BlockCache


@dataclass(frozen=True)
class ReferenceInputs:
    """Encoded references and their prompt, one entry per picture.

    Attributes:
        latents: normalised latents, each (B, in_dim, 1, h, w); sizes may differ between references.
        text_embeds: (B, text_len, text_dim), the first-frame prompt.
        image_embeds: CLIP tokens, each (B, N, image_dim); empty for a model or a run without the CLIP branch.
        timesteps: (B,), 1000 * sigma of the references; None is 0 (clean).
        gap: latent frames between references and video; None takes the config's.
    """

    latents: list[Tensor]
    text_embeds: Tensor
    image_embeds: list[Tensor]
    timesteps: Tensor | None = None
    gap: float | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReferenceInputs:
        """The same on another device or in another dtype; timesteps stay float32."""
        return replace(
            self,
            latents=[item.to(device=device, dtype=dtype) for item in self.latents],
            text_embeds=self.text_embeds.to(device=device, dtype=dtype),
            image_embeds=[tokens.to(device=device, dtype=dtype) for tokens in self.image_embeds],
            timesteps=None if self.timesteps is None else self.timesteps.to(device=device),
        )

    def at_gap(self, gap: float | None) -> ReferenceInputs:
        """The same at another gap; None leaves it."""
        return self if gap is None else replace(self, gap=gap)


@dataclass(frozen=True)
class InContextReferences:
    """References whose tokens follow the video's in its own stream, at the video's timestep; nothing can be cached.

    Each has its own grid and its number (`rope.in_context_positions`), so sizes may differ from the video's.

    Attributes:
        latents: normalised latents, each (B or 1, in_dim, t, h, w).
    """

    latents: list[Tensor]


@dataclass(frozen=True)
class ReferenceCache:
    """Keys and values of the references that the video attends to, independent of the denoising step.

    A cache made for a batch of 1 serves any batch.

    Attributes:
        blocks: keys and values, one entry per block.
        outputs: the reference stream's own output, one (B, out_dim, 1, h, w) per reference, for `reconstruction`.
    """

    blocks: Sequence[BlockCache]
    outputs: list[Tensor]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReferenceCache:
        """The cache on another device or in another dtype."""

        def move(pair: KeysValues) -> KeysValues:
            return KeysValues(*(part.to(device=device, dtype=dtype) for part in pair))

        def move_block(block: BlockCache) -> BlockCache:
            emphasize = None if block.emphasize is None else move(block.emphasize)
            return BlockCache(move(block.self_attn), emphasize, None if block.image is None else move(block.image))

        outputs = [output.to(device=device, dtype=dtype) for output in self.outputs]
        return ReferenceCache([move_block(block) for block in self.blocks], outputs)
