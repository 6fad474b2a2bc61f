"""Mask-guided attention (AnimateAnywhere): the background attends to the text without the person's name.

The text cross-attention is computed twice, over all tokens of the text and over all but those that name the person. The
two results are mixed by the share of each video token that the person covers. Neither needs an attention mask, so fused
kernels can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from ..errors import ShapeError
from .transfer import moved

# Paper: "weights on the original attention" by masks; neither a formula nor which attention is stated. Here it is the
# text cross-attention, as the name is in the text: a query with share m gets m * (whole text) + (1 - m) * (text without
# name and class).

NO_REGIONS = (
    "Regions of a person are given, and this model has its references in the video's own stream, where regions are not "
    "supported; leave the regions out, or use a ContextAnyone model, plain Wan or Wan2.1-Fun-Control."
)

Tokens = tuple[int, ...]
"""Indices of tokens of a text (rows of its embeddings), ascending."""


@dataclass(frozen=True)
class Regions:
    """Where the person is in a batch of videos, and which tokens of each text name them.

    Attributes:
        person: (B, 1, T, h, w), the share of each latent that the person covers, from 0 to 1; a batch of 1 serves any.
        named: for each text, the tokens that name the person; empty where the whole video attends to the whole text.
            A single entry serves any batch.
    """

    person: Tensor
    named: tuple[Tokens, ...]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Regions:
        """The same on another device or in another dtype."""
        return replace(self, person=self.person.to(device=device, dtype=dtype))

    def keep_names(self, keep: Sequence[bool]) -> Regions:
        """The same, with no tokens that name the person in the texts where `keep` is False."""
        named = self.named * len(keep) if len(self.named) == 1 else self.named
        return replace(self, named=tuple(tokens if kept else () for tokens, kept in zip(named, keep, strict=True)))

    def keep_masks(self, keep: Tensor) -> Regions:
        """The same, with videos where `keep`, (B,) bool, is False wholly covered: they attend to the whole text."""
        return replace(self, person=torch.where(keep[:, None, None, None, None], self.person, 1.0))

    def guide(self, latents: Tensor, patch: tuple[int, int, int], text_len: int) -> TextGuide | None:
        """What the text cross-attention needs for these latents (B, C, T, h, w); None if no text names the person.

        Raises:
            ShapeError: the regions have another size or batch than the latents, or a token is beyond `text_len`.
        """
        batch = len(latents)
        self._check(latents, text_len)
        named = self.named * batch if len(self.named) == 1 else self.named
        counts = sorted({len(tokens) for tokens in named} - {0})
        if not counts:
            return None
        groups = []
        for count in counts:  # texts with equally many tokens left can be one batch
            videos = [index for index, tokens in enumerate(named) if len(tokens) == count]
            left = [[token for token in range(text_len) if token not in named[index]] for index in videos]
            every = None if len(videos) == batch else moved(torch.tensor(videos), latents.device)
            groups.append(TextGroup(every, moved(torch.tensor(left), latents.device)))
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
                    f"The regions are a batch of {size} {name}, the latents of {batch}; needed is {batch}, or 1."
                )
        for tokens in self.named:
            if not set(tokens) < set(range(text_len)):
                raise ShapeError(
                    f"The regions name the tokens {list(tokens)[:8]} of a text; needed are numbers from 0 to "
                    f"{text_len - 1}, of all but one token at most."
                )


class TextGroup(NamedTuple):
    """Videos of a batch whose texts name the person by equally many tokens.

    Attributes:
        videos: (V,), indices in the batch; None is the whole batch.
        tokens: (V, L), for each of them the tokens of its text that the background attends to.
    """

    videos: Tensor | None
    tokens: Tensor


class TextGuide(NamedTuple):
    """What the text cross-attention needs of `Regions`.

    Attributes:
        person: (B, tokens, 1), the share of each video token that the person covers.
        groups: the videos whose texts name the person; others attend to their whole text.
    """

    person: Tensor
    groups: tuple[TextGroup, ...]
