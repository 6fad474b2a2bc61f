"""Public import path of the pipeline (see the README)."""

from .generation.pipeline import ContextAnyonePipeline, GenerationResult, GenerationSettings

__all__ = ["ContextAnyonePipeline", "GenerationResult", "GenerationSettings"]
