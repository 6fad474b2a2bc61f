"""The node that puts references, prompts and size together for any stock sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._comfy.familiarity import say_how_familiar
from ._comfy.references import (
    ReferencePicture,
    apply_references,
    config_of,
    empty_latents,
    without_references_of,
)
from .inputs import (
    CATEGORY,
    GAP_TOOLTIP,
    Reference,
    checked_size,
    emphasis_input,
    own_number,
    size_inputs,
    size_mistake,
)


class ApplyContextAnyone(io.ComfyNode):
    """References into the conditioning, and an empty latent of the right size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneApply",
            display_name="Apply ContextAnyone",
            category=CATEGORY,
            description="Makes a video follow the reference: encodes the pictures for its size, puts them into the "
            "positive conditioning, gives the empty latent. Works with KSampler, SamplerCustomAdvanced and the rest.",
            search_aliases=["contextanyone", "reference to video", "character", "conditioning", "identity"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ContextAnyone, through LoRA loaders if you like."),
                io.Conditioning.Input("positive", tooltip="From ContextAnyone Prompt (or CLIP Text Encode)."),
                io.Conditioning.Input("negative", tooltip="From ContextAnyone Prompt (or CLIP Text Encode)."),
                Reference.Input("reference", optional=True, tooltip="The character. Without it: plain text to video."),
                *size_inputs(),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, advanced=True, tooltip="Videos at a time, of one character."
                ),
                emphasis_input(),
                io.Float.Input("gap", default=0.0, min=0.0, max=100.0, step=0.5, advanced=True, tooltip=GAP_TOOLTIP),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, checked against all that is connected."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the references."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, without references."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the video's size."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, length: int | None = None
    ) -> bool | str:
        """Sizes that cannot be made are told before the run."""
        return size_mistake(width, height, length) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        reference: tuple[ReferencePicture, ...] = (),
        **settings: Any,
    ) -> io.NodeOutput:
        """Encode the references for this size."""
        size = checked_size(settings["width"], settings["height"], settings["length"])
        applied = apply_references(
            model,
            positive,
            negative,
            reference,
            size,
            emphasis=settings["emphasis"],
            gap=own_number("gap", settings["gap"]),
        )
        say_how_familiar(getattr(cls.hidden, "unique_id", None), reference)
        latents = empty_latents(config_of(model), size, settings["length"], settings["batch_size"])
        unseen = without_references_of(model, applied, negative)
        return io.NodeOutput(model, applied, unseen, {"samples": latents})
