"""The public import of the pipeline, as the README uses it."""

from .generation.pipeline import ContextAnyonePipeline, GenerationResult, GenerationSettings

__all__ = ["ContextAnyonePipeline", "GenerationResult", "GenerationSettings"]
