"""Reference conditioning modes: separate stream with a cache (ContextAnyone), temporal concatenation (Phantom,
RefAlign), in-context tokens (Bernini).

A mode is instantiated for one sampling run. It holds what is computed once per run, and predicts the velocity of the
noisy video in every pass of every step.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..model.condition import VideoCondition
from ..model.references import InContextReferences, ReferenceInputs
from ..model.transformer import ContextAnyoneTransformer


class SeparateStream:
    """ContextAnyone: a separate reference stream, run once, and its key-value cache; without a reference, plain Wan.

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

    cfg_keeps_references: ClassVar[bool] = False
    """Whether the pass of `cfg` with the negative prompt has the references too."""

    def __init__(
        self, transformer: ContextAnyoneTransformer, references: ReferenceInputs | None, emphasis: float = 1.0
    ) -> None:
        self._transformer = transformer
        self._emphasis = emphasis
        self._cache = None if references is None else transformer.encode_references(references)
        self.outputs: list[Tensor] = [] if self._cache is None else self._cache.outputs

    def velocity(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        *,
        with_reference: bool,
        condition: VideoCondition | None = None,
    ) -> Tensor:
        """Velocity of noisy latents (B, in_dim, T, h, w); without references, no reference tokens at all.

        Raises:
            InputError: a condition is given, and the transformer has no channels for it.
        """
        cache = self._cache if with_reference else None
        given = {} if condition is None else {"condition": condition}  # variants of the network may not accept one
        output = self._transformer(latents, timesteps, text_embeds, cache=cache, emphasis=self._emphasis, **given)
        return cast("Tensor", output.velocity)


class _OneStream:
    """Base of the modes with clean references in the video's own stream, for the network of Wan 2.1 T2V.

    Nothing can be cached. CLIP tokens and the first-frame prompt are not used, and there are no condition channels.

    Args:
        transformer: Wan 2.1 T2V's network.
        references: None is plain text to video.
        emphasis: unused; this network has no Emphasize-Attention.

    Attributes:
        outputs: always empty: there is no reference stream.
    """

    guidance: ClassVar[str]
    """The guidance of a run that names none."""

    cfg_keeps_references: ClassVar[bool] = False
    """Whether the pass of `cfg` with the negative prompt has the references too."""

    def __init__(
        self, transformer: ContextAnyoneTransformer, references: ReferenceInputs | None, emphasis: float = 1.0
    ) -> None:
        self._transformer = transformer
        self._references = [] if references is None else references.latents
        self.outputs: list[Tensor] = []

    def velocity(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        *,
        with_reference: bool,
        condition: VideoCondition | None = None,
    ) -> Tensor:
        """Velocity of noisy latents (B, in_dim, T, h, w); each class states what replaces absent references.

        Raises:
            InputError: a pose or start frame is given.
            ShapeError: a reference does not fit.
        """
        if condition is not None:
            raise InputError("This model takes no pose and no start frame; leave them out.")
        return self._velocity(latents, timesteps, text_embeds, with_reference=with_reference)

    def _velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        raise NotImplementedError


class TemporalConcatenation(_OneStream):
    """Phantom: clean references concatenated in time after the video; zeros in their place in unconditional passes.

    The network treats the whole as one video: positions continue, every token has the same timestep, attention is
    full. The output at the references' frames is dropped (Phantom-Wan, arXiv 2502.11079, and its published inference).
    """

    guidance = "dual"
    references_read_text: ClassVar[bool] = True
    """Whether the references' tokens attend to the text too."""

    def _velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        shown = self._references if with_reference else [torch.zeros_like(item) for item in self._references]
        joined = append_references(latents, shown)
        given = {} if self.references_read_text else {"condition": VideoCondition(textless_frames=len(shown))}
        velocity = cast("Tensor", self._transformer(joined, timesteps, text_embeds, **given).velocity)
        return velocity[:, :, : latents.shape[2]]


class TextlessConcatenation(TemporalConcatenation):
    """RefAlign: Phantom's layout and passes, but the references' tokens skip the cross-attention of every block.

    They attend to the video and to each other only (RefAlign, arXiv 2603.25743, the `DiTBlock` of its published
    inference). Its references are subjects cut out on white.
    """

    references_read_text = False


class InContext(_OneStream):
    """Bernini: clean references as further tokens of the video's stream; plain Wan in passes without them.

    Each reference keeps its own size and has its own grid of positions from 0, told apart by its number
    (`rope.in_context_positions`). All tokens have the video's timestep, attention is full, and the output at the
    references is dropped (Bernini, arXiv 2605.22344). Both passes of `cfg` have the references, as in ComfyUI.
    """

    guidance = "dual"
    cfg_keeps_references = True

    def _velocity(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, *, with_reference: bool) -> Tensor:
        references = InContextReferences(self._references) if self._references and with_reference else None
        return cast("Tensor", self._transformer(latents, timesteps, text_embeds, references=references).velocity)


Conditioned = SeparateStream | TemporalConcatenation | InContext
"""A mode in one sampling run."""
ReferenceMode = type[SeparateStream] | type[TemporalConcatenation] | type[InContext]
"""One of these classes, or a subclass."""
REFERENCE_MODES: dict[str, ReferenceMode] = {
    "contextanyone": SeparateStream,
    "wan": SeparateStream,
    "phantom": TemporalConcatenation,
    "refalign": TextlessConcatenation,
    "bernini": InContext,
}
"""Reference mode of each of `model_specs.MODELS` that runs on our transformer."""


def append_references(latents: Tensor, references: list[Tensor]) -> Tensor:
    """Latents (B, C, T, h, w) with n references (B or 1, C, 1, h, w) appended in time: (B, C, T + n, h, w).

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
