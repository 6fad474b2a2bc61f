"""The node for the two-stage prompt."""

from __future__ import annotations

from comfy_api.latest import io

from ..contextanyone_core.prompts import TwoStagePrompt
from ._comfy.references import encode_prompt
from ._comfy.types import Clip
from .inputs import CATEGORY, FIRST_TOOLTIP, LATER_TOOLTIP, NEGATIVE_TOOLTIP, check_prompts, prompt_input


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
            "the first, the video reads both. {a|b} picks one of the two; the rest is taken as it is written, also "
            "brackets and embedding:name.",
            search_aliases=["contextanyone", "text encode", "two-stage prompt", "caption"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder: umT5-XXL for full size, the miniature's own."),
                prompt_input("first", FIRST_TOOLTIP),
                prompt_input("later", LATER_TOOLTIP),
                prompt_input("negative", NEGATIVE_TOOLTIP),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Both prompts, and the first alone."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
            ],
        )

    @classmethod
    def validate_inputs(cls, first: str | None = None, later: str | None = None) -> bool:
        """An empty prompt is reported before the run.

        Raises:
            InputError: both prompts are empty.
        """
        check_prompts(first, later)
        return True

    @classmethod
    def execute(cls, clip: Clip, first: str, later: str, negative: str) -> io.NodeOutput:
        """Encode.

        Raises:
            InputError: both prompts are empty, or clip is null.
        """
        return io.NodeOutput(*encode_prompt(clip, TwoStagePrompt(first, later), negative))
