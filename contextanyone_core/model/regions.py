"""Mask-guided attention (AnimateAnywhere): the background reads the text without the tokens that name the person.

In the text cross-attention every query reads all tokens, and once more all but those that name the person; the two are
mixed by how much of the person each video token shows. There is no attention mask, so fused kernels stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from ..errors import ShapeError

# Paper: "weights on the original attention" of masks, without a formula, and not which attention. Here the text's,
# where the name is: a query at mask m gets m of the whole text and 1 - m of the text without name and class.

NO_REGIONS = (
    "This model has its references in the video's own stream, and the person's regions are not made for that; leave "
    "the regions out, or use a ContextAnyone model, plain Wan or Wan2.1-Fun-Control."
)

Tokens = tuple[int, ...]
"""Rows of a text's embeddings, ascending."""


@dataclass(frozen=True)
class Regions:
    """Where the person is in a batch of videos, and which tokens of each text name them.

    Attributes:
        person: (B, 1, T, h, w), the person's share of each latent, from 0 to 1; a batch of 1 serves any.
        named: of each text, the rows of its embeddings that name the person; none is a text that is read as ever. One
            entry serves any batch.
    """

    person: Tensor
    named: tuple[Tokens, ...]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Regions:
        """The same on another device or in another dtype."""
        return replace(self, person=self.person.to(device=device, dtype=dtype))

    def only(self, kept: Sequence[bool]) -> Regions:
        """The same for a batch in which some videos have none: `kept` says of each whether it has."""
        named = self.named * len(kept) if len(self.named) == 1 else self.named
        return replace(self, named=tuple(rows if keep else () for rows, keep in zip(named, kept, strict=True)))

    def where(self, known: Tensor) -> Regions:
        """The same for a batch in which it is not known of some videos: those are all person, and read all of the text.

        Args:
            known: (B,) bool.
        """
        return replace(self, person=torch.where(known[:, None, None, None, None], self.person, 1.0))

    def guide(self, latents: Tensor, patch: tuple[int, int, int], text_len: int) -> TextGuide | None:
        """What the text cross-attention needs for these latents (B, C, T, h, w); None where no text names anybody.

        Raises:
            ShapeError: of another size or batch than the latents, or a row is beyond the text's.
        """
        batch = len(latents)
        self._check(latents, text_len)
        named = self.named * batch if len(self.named) == 1 else self.named
        counts = sorted({len(rows) for rows in named} - {0})
        if not counts:
            return None
        groups = []
        for count in counts:
            videos = [index for index, rows in enumerate(named) if len(rows) == count]
            left = [[row for row in range(text_len) if row not in named[index]] for index in videos]
            every = None if len(videos) == batch else torch.tensor(videos, device=latents.device)
            groups.append(Unnamed(every, torch.tensor(left, device=latents.device)))
        sizes = dict(zip("ijk", patch, strict=True))
        shares = reduce(self.person.to(latents), "b 1 (t i) (h j) (w k) -> b (t h w) 1", "mean", **sizes)
        return TextGuide(shares.expand(batch, -1, -1), tuple(groups))

    def _check(self, latents: Tensor, text_len: int) -> None:
        batch, given = len(latents), self.person
        frames, rows, columns = latents.shape[2:]
        if given.ndim != 5 or tuple(given.shape[1:]) != (1, frames, rows, columns):
            raise ShapeError(
                f"The regions have shape {tuple(given.shape)}; needed is (batch, 1, {frames}, {rows}, {columns}), the "
                "size of the video's latents."
            )
        for name, size in (("masks", len(given)), ("texts", len(self.named))):
            if size not in (1, batch):
                raise ShapeError(
                    f"The regions are a batch of {size} {name}, the latents of {batch}; one size, or 1, is needed."
                )
        for tokens in self.named:
            if not set(tokens) < set(range(text_len)):
                raise ShapeError(
                    f"The regions name the tokens {list(tokens)[:8]} of a text; of its {text_len} tokens from 0 on all "
                    "but one can be named."
                )


class Unnamed(NamedTuple):
    """Videos of a batch whose texts name the person by equally many tokens.

    Attributes:
        videos: (V,), their places in the batch; None is all of it.
        tokens: (V, L), the rows of each one's text that its background reads.
    """

    videos: Tensor | None
    tokens: Tensor


class TextGuide(NamedTuple):
    """What the text cross-attention needs of `Regions`.

    Attributes:
        person: (B, tokens, 1), the person's share of each video token.
        groups: the videos with named tokens, by the number of these.
    """

    person: Tensor
    groups: tuple[Unnamed, ...]
