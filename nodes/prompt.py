"""The node for the two-stage prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..contextanyone_core.prompts import TwoStagePrompt
from ._comfy.references import encode_prompt
from .inputs import CATEGORY, FIRST_TOOLTIP, LATER_TOOLTIP, NEGATIVE_TOOLTIP, prompt_mistake


class ContextAnyonePrompt(io.ComfyNode):
    """First-frame prompt and later-frames prompt, encoded together and the first also alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyonePrompt",
            display_name="ContextAnyone Prompt",
            category=CATEGORY,
            description="The prompt in two stages: how the first frame looks, then what happens. The reference reads "
            "the first, the video reads both. Text is taken as it is written; brackets set no weights.",
            search_aliases=["contextanyone", "text encode", "two-stage prompt", "caption"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder: umT5-XXL for full size, the miniature's own."),
                io.String.Input("first", multiline=True, default="", tooltip=FIRST_TOOLTIP),
                io.String.Input("later", multiline=True, default="", tooltip=LATER_TOOLTIP),
                io.String.Input("negative", multiline=True, default="", tooltip=NEGATIVE_TOOLTIP),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Both prompts, and the first alone."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
            ],
        )

    @classmethod
    def validate_inputs(cls, first: str | None = None, later: str | None = None) -> bool | str:
        """An empty prompt is told before the run."""
        return prompt_mistake(first, later) or True

    @classmethod
    def execute(cls, clip: Any, first: str, later: str, negative: str) -> io.NodeOutput:
        """Encode."""
        return io.NodeOutput(*encode_prompt(clip, TwoStagePrompt(first, later), negative))
