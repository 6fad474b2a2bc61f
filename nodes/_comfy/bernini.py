"""Bernini-R as ComfyUI runs it: Wan's own layers, references as further tokens of the video's stream."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.model_management
import torch

from ...contextanyone_core.model.transformer import ContextAnyoneTransformer, InContextReferences
from ...contextanyone_core.model_specs import MODELS
from ...contextanyone_core.runtime.memory import forward_bytes
from .model import ContextAnyoneModel, reference_numbers
from .network import ContextAnyoneNetwork, host_attention
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


class BerniniModel(ContextAnyoneModel):
    """A Bernini MODEL: references at their own size, in every pass."""

    network = BerniniNetwork
    unconditional = "references"
    own_size = MODELS["bernini"].own_size
    family = MODELS["bernini"].family

    @property
    def follows_references(self) -> bool:
        """Whether it was trained to."""
        return True

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list[list[int]]] | None = None) -> float:
        """Bytes that a call of the network needs beside the weights: of a stream longer by the references' tokens."""
        batch, channels, frames, height, width = input_shape
        numbers, _ = reference_numbers(cond_shapes)
        longer = (batch, channels, 1, 1, frames * height * width + numbers // channels)  # as many latents in one row
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        return forward_bytes(self.config, longer, dtype_size=size)
