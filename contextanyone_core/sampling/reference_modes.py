"""How a model reads its references while it denoises: in a stream of their own, or as frames behind the video.

One reading is made for one sampling run. It holds whatever can be computed once, and turns the noisy video into a
velocity in every pass of every step.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from ..errors import ShapeError
from ..model.transformer import ContextAnyoneTransformer, ReferenceInputs


class SeparateStream:
    """ContextAnyone's way, and plain Wan's where there is no reference: a reference stream, run once, and its cache.

    Args:
        transformer: the network.
        references: None is plain text to video.
        emphasis: factor of Emphasize-Attention.

    Attributes:
        outputs: the reference stream's own output, one (B, out_dim, 1, h, w) per reference; empty without.

    Raises:
        ShapeError: a reference does not fit the transformer.
    """

    guidance: ClassVar[str] = "cfg"
    """The guidance of a run that names none."""

    def __init__(
        self, transformer: ContextAnyoneTransformer, references: ReferenceInputs | None, emphasis: float = 1.0
    ) -> None:
        self._transformer = transformer
        self._emphasis = emphasis
        self._cache = None if references is None else transformer.encode_references(references)
        self.outputs: list[Tensor] = [] if self._cache is None else self._cache.outputs

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """Velocity of noisy latents (B, in_dim, T, h, w); without `seen` there are no references at all."""
        cache = self._cache if with_reference else None
        output = self._transformer(latents, timesteps, text_embeds, cache=cache, emphasis=self._emphasis)
        return cast("Tensor", output.velocity)


class TemporalConcatenation:
    """Phantom's way: clean references as latent frames behind the video, zeros there in the pass that sees none.

    The whole is one video for the network: positions run on, every token has the same timestep, all read all. What
    comes out at the references' places is dropped (Phantom-Wan, arXiv 2502.11079, and its published inference).
    Neither CLIP tokens nor the first-frame prompt are read, and nothing can be computed ahead.

    Args:
        transformer: Wan 2.1 T2V's network.
        references: None is plain text to video.
        emphasis: not heard; such a network has no Emphasize-Attention.

    Attributes:
        outputs: always empty: there is no reference stream.
    """

    guidance: ClassVar[str] = "dual"
    """The guidance of a run that names none."""

    def __init__(
        self, transformer: ContextAnyoneTransformer, references: ReferenceInputs | None, emphasis: float = 1.0
    ) -> None:
        self._transformer = transformer
        self._references = [] if references is None else references.latents
        self.outputs: list[Tensor] = []

    def velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        """Velocity of noisy latents (B, in_dim, T, h, w); without `seen` zeros stand where the references would.

        Raises:
            ShapeError: a reference is not of the video's size.
        """
        shown = self._references if with_reference else [torch.zeros_like(item) for item in self._references]
        joined = append_references(latents, shown)
        velocity = cast("Tensor", self._transformer(joined, timesteps, text_embeds).velocity)
        return velocity[:, :, : latents.shape[2]]


ReferenceMode = type[SeparateStream] | type[TemporalConcatenation]
"""A class of this file."""
REFERENCE_MODES: dict[str, ReferenceMode] = {
    "contextanyone": SeparateStream,
    "wan": SeparateStream,
    "phantom": TemporalConcatenation,
}
"""Of those `model_kinds.MODELS` that run on our transformer."""


def append_references(latents: Tensor, references: list[Tensor]) -> Tensor:
    """Latents (B, C, T, h, w) and, behind them in time, n references (B or 1, C, 1, h, w): (B, C, T + n, h, w).

    Raises:
        ShapeError: a reference is not one frame of the video's size.
    """
    batch, channels, _, height, width = latents.shape
    for item in references:
        if tuple(item.shape[1:]) != (channels, 1, height, width) or item.shape[0] not in (1, batch):
            raise ShapeError(
                f"A reference has shape {tuple(item.shape)}; beside latents of {tuple(latents.shape)} it must be "
                f"({batch}, {channels}, 1, {height}, {width}): encode it for the video's width and height."
            )
    return torch.cat([latents, *(item.to(latents).expand(batch, -1, -1, -1, -1) for item in references)], dim=2)
