"""Bernini-R as ComfyUI runs it: Wan's own layers, references as further tokens of the video's stream."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ...contextanyone_core.model.references import InContextReferences
from ...contextanyone_core.model.transformer import ContextAnyoneTransformer
from ...contextanyone_core.model_specs import MODELS
from .network import ContextAnyoneNetwork, host_attention
from .one_stream import OneStreamModel
from .run import KeyedReferences


class BerniniNetwork(ContextAnyoneNetwork):
    """`diffusion_model` of a Bernini MODEL: conditioned on references as the core's `InContext`."""

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
        shown = None if references is None else InContextReferences(references.inputs.latents)
        attention = partial(host_attention, options=transformer_options)
        output = ContextAnyoneTransformer.forward(self, x, timestep, context, references=shown, attention=attention)
        return output.velocity


class BerniniModel(OneStreamModel):
    """A Bernini MODEL: references at their own size, in both passes of cfg and two of the three of dual guidance."""

    network = BerniniNetwork
    unconditional = "references"
    own_size = MODELS["bernini"].own_size
    family = MODELS["bernini"].family
