"""What the public reference models have in common under ComfyUI: references as tokens of the video's own stream."""

from __future__ import annotations

import math

import comfy.model_management

from ...contextanyone_core.runtime.memory import one_stream_bytes
from .model import ContextAnyoneModel, reference_numbers


class OneStreamModel(ContextAnyoneModel):
    """A MODEL whose references make every pass longer; nothing of them is kept."""

    has_cache = False

    @property
    def follows_references(self) -> bool:
        """Whether the model was trained to follow references."""
        return True

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list[list[int]]] | None = None) -> float:
        """Bytes that a call of the network needs beside the weights: of a stream longer by the references' tokens."""
        numbers, _ = reference_numbers(cond_shapes)
        config, size = self.config, comfy.model_management.dtype_size(self.get_dtype_inference())
        tokens = numbers // (config.in_dim * math.prod(config.patch_size))
        return one_stream_bytes(config, input_shape, reference_tokens=tokens, dtype_size=size)
