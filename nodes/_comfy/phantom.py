"""Phantom-Wan and RefAlign as ComfyUI runs them: Wan's own layers, references as latent frames behind the video."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.model_management
import torch

from ...contextanyone_core.model.transformer import ContextAnyoneTransformer
from ...contextanyone_core.model_specs import MODELS
from ...contextanyone_core.runtime.memory import forward_bytes
from ...contextanyone_core.sampling.reference_modes import append_references
from .model import ContextAnyoneModel, reference_numbers
from .network import ContextAnyoneNetwork, host_attention
from .run import KeyedReferences


class PhantomNetwork(ContextAnyoneNetwork):
    """`diffusion_model` of a Phantom MODEL: conditioned on references as the core's `TemporalConcatenation`."""

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
        joined = append_references(x, [] if references is None else references.inputs.latents)
        attention = partial(host_attention, options=transformer_options)
        output = ContextAnyoneTransformer.forward(self, joined, timestep, context, attention=attention)
        return output.velocity[:, :, : x.shape[2]]


class PhantomModel(ContextAnyoneModel):
    """A Phantom MODEL; without references they are replaced by zeros."""

    network = PhantomNetwork
    unconditional = "zeros"
    family = MODELS["phantom"].family

    @property
    def follows_references(self) -> bool:
        """Whether it was trained to."""
        return True

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list[list[int]]] | None = None) -> float:
        """Bytes that a call of the network needs beside the weights: of a video that is longer by the references."""
        batch, channels, frames, height, width = input_shape
        numbers, _ = reference_numbers(cond_shapes)
        longer = (batch, channels, frames + numbers // (channels * height * width), height, width)
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        return forward_bytes(self.config, longer, dtype_size=size)


class RefAlignModel(PhantomModel):
    """A RefAlign MODEL: Phantom's layout and passes, of subjects cut out on white."""

    cut_out = MODELS["refalign"].cut_out
    family = MODELS["refalign"].family
