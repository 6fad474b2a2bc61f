"""The node that puts references, prompts and size together for any stock sampler."""

from __future__ import annotations

from typing import Unpack

from comfy_api.latest import io

from ._comfy.given import require_conditioning
from ._comfy.notes import reference_note, size_note
from ._comfy.personal import with_person
from ._comfy.poses import condition_values, follow
from ._comfy.references import (
    PromptNames,
    ReferencePicture,
    apply_references,
    config_of,
    empty_latents,
    given_references,
    unconditional_of,
    without_applied,
)
from ._comfy.types import Conditioning, Model
from .inputs import (
    CATEGORY,
    RANGES,
    FollowingSettings,
    Reference,
    SizeSettings,
    check_numbers,
    emphasis_input,
    following_inputs,
    following_of,
    gap_input,
    own_number,
    size_inputs,
)

_NAMES = PromptNames(
    positive="The prompt at positive of Apply ContextAnyone",
    first="The first-frame prompt (first of ContextAnyone Prompt)",
    negative="The negative prompt at negative of Apply ContextAnyone",
)


class ApplySettings(SizeSettings, FollowingSettings):
    """The widgets of Apply ContextAnyone."""

    batch_size: int
    emphasis: float
    gap: float


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
                RANGES["batch_size"].whole("batch_size", 1, "Videos at a time, of one character.", advanced=True),
                emphasis_input(),
                gap_input(),
                *following_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, checked against all that is connected."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the references."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, without references."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the video's size."),
            ],
            has_intermediate_output=True,  # its note comes with every run, also where the node is cached
        )

    @classmethod
    def validate_inputs(
        cls,
        width: int | None = None,
        height: int | None = None,
        length: int | None = None,
        emphasis: float | None = None,
        gap: float | None = None,
        pose_strength: float | None = None,
    ) -> bool:
        """Numbers that no video can be made with are reported before the run.

        Raises:
            InputError: naming the first of them.
        """
        sizes = {"width": width, "height": height, "length": length}
        check_numbers(**sizes, emphasis=emphasis, gap=gap, pose_strength=pose_strength)
        return True

    @classmethod
    def execute(
        cls,
        model: Model,
        positive: Conditioning,
        negative: Conditioning,
        reference: tuple[ReferencePicture, ...] = (),
        **settings: Unpack[ApplySettings],
    ) -> io.NodeOutput:
        """Encode the references for this size.

        Raises:
            InputError, ShapeError: something that is connected does not fit; the message states the remedy.
        """
        check_numbers(**{name: settings.get(name) for name in RANGES})
        reference, following = given_references(reference), following_of(settings)
        require_conditioning(positive=positive, negative=negative)
        positive, negative = without_applied(positive), without_applied(negative)
        size = (settings["height"], settings["width"])
        applied = apply_references(
            model,
            positive,
            negative,
            reference,
            size,
            emphasis=settings["emphasis"],
            gap=own_number(settings["gap"]),
            names=_NAMES,
        )
        latents = empty_latents(config_of(model), size, settings["length"], settings["batch_size"])
        unconditional = unconditional_of(model, applied, negative)
        values, told = condition_values(config_of(model), following, reference, size, settings["length"])
        applied, unconditional = follow(values, applied, unconditional)
        applied, nowhere = with_person(model, applied, following, size, settings["length"])
        note = reference_note(model, reference, "Apply ContextAnyone", size_note(model, size), *told, nowhere)
        return io.NodeOutput(model, applied, unconditional, {"samples": latents}, ui=note)
