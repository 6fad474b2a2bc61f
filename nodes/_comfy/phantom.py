"""Phantom-Wan and RefAlign as ComfyUI runs them: Wan's own layers, references as latent frames behind the video."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from ...contextanyone_core.model.condition import VideoCondition
from ...contextanyone_core.model.transformer import ContextAnyoneTransformer
from ...contextanyone_core.model_specs import MODELS
from ...contextanyone_core.sampling.reference_modes import (
    TemporalConcatenation,
    TextlessConcatenation,
    append_references,
)
from .network import ContextAnyoneNetwork, host_attention
from .one_stream import OneStreamModel
from .run import KeyedReferences


class PhantomNetwork(ContextAnyoneNetwork):
    """`diffusion_model` of a Phantom MODEL: conditioned on references as the core's `TemporalConcatenation`."""

    mode: ClassVar[type[TemporalConcatenation]] = TemporalConcatenation

    def _velocity(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        transformer_options: dict[str, Any],
        emphasis: float = 1.0,
        references: KeyedReferences | None = None,
        **_: Any,
    ) -> torch.Tensor:
        shown = [] if references is None else references.inputs.latents
        joined = append_references(x, shown)
        condition = None if self.mode.references_read_text else VideoCondition(textless_frames=len(shown))
        attention = partial(host_attention, options=transformer_options)
        output = ContextAnyoneTransformer.forward(
            self, joined, timestep, context, condition=condition, attention=attention
        )
        return output.velocity[:, :, : x.shape[2]]


class PhantomModel(OneStreamModel):
    """A Phantom MODEL; without references they are replaced by zeros."""

    network = PhantomNetwork
    unconditional = "zeros"
    family = MODELS["phantom"].family


class RefAlignNetwork(PhantomNetwork):
    """`diffusion_model` of a RefAlign MODEL: conditioned on references as the core's `TextlessConcatenation`."""

    mode = TextlessConcatenation


class RefAlignModel(PhantomModel):
    """A RefAlign MODEL: Phantom's layout and passes, of subjects cut out on white that do not read the text."""

    network = RefAlignNetwork
    cut_out = MODELS["refalign"].cut_out
    family = MODELS["refalign"].family
