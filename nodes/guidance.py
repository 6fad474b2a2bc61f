"""The nodes that guide and sample."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..contextanyone_core.errors import InputError
from ..contextanyone_core.prompts import TwoStagePrompt
from ..contextanyone_core.sampling.guidance import check_interval, make_guidance
from ._comfy.familiarity import say_how_familiar
from ._comfy.references import (
    ReferencePicture,
    apply_references,
    config_of,
    empty_latents,
    encode_prompt,
)
from ._comfy.sampling import ReferenceGuider, sample, sampler_names
from .inputs import (
    CATEGORY,
    FIRST_TOOLTIP,
    GAP_TOOLTIP,
    LATER_TOOLTIP,
    NEGATIVE_TOOLTIP,
    Reference,
    checked_size,
    emphasis_input,
    own_number,
    prompt_mistake,
    size_inputs,
    size_mistake,
)

_SCALE = {"min": 0.0, "max": 100.0, "step": 0.1}
_OWN = "0 takes the model's own."
_INTERVAL = "Steps between two noise levels (0 clean, 1 noise) are guided, others make one pass, without the negative."


class ContextAnyoneGuider(io.ComfyNode):
    """Dual guidance as a GUIDER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneGuider",
            display_name="ContextAnyone Guider",
            category=CATEGORY,
            description="Guides prompt and picture apart, for SamplerCustomAdvanced: three passes for each step, where "
            "CFG has two. Raise reference_scale if the character drifts, guidance_scale if the prompt is ignored.",
            search_aliases=["contextanyone", "dual guidance", "dual cfg", "guider", "reference scale"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply ContextAnyone."),
                io.Conditioning.Input("positive", tooltip="From Apply ContextAnyone: it carries the references."),
                io.Conditioning.Input("negative", tooltip="From Apply ContextAnyone."),
                io.Float.Input("guidance_scale", default=0.0, tooltip=f"How hard the prompt pulls. {_OWN}", **_SCALE),
                io.Float.Input("reference_scale", default=0.0, tooltip=f"How hard the picture pulls. {_OWN}", **_SCALE),
                *_interval_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        guidance_scale: float,
        reference_scale: float,
        guidance_low: float = 0.0,
        guidance_high: float = 1.0,
    ) -> io.NodeOutput:
        """Make the guider."""
        guidance = make_guidance(
            "dual",
            config_of(model),
            guidance_scale=own_number("guidance_scale", guidance_scale),
            reference_scale=own_number("reference_scale", reference_scale),
            interval=(guidance_low, guidance_high),
        )
        return io.NodeOutput(ReferenceGuider(model, positive, negative, guidance))


class ContextAnyoneSampler(io.ComfyNode):
    """Prompt, Apply and sampling in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs: ten to see, the rest under advanced."""
        return io.Schema(
            node_id="ContextAnyoneSampler",
            display_name="ContextAnyone Sampler",
            category=CATEGORY,
            description="The short way: prompts, references, guidance and sampling in one node. ContextAnyone Prompt, "
            "Apply ContextAnyone and a stock sampler do the same in steps.",
            search_aliases=["contextanyone", "reference to video", "character video", "ksampler", "generate"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ContextAnyone, through LoRA loaders if you like."),
                io.Clip.Input("clip", tooltip="The text encoder."),
                Reference.Input("reference", optional=True, tooltip="The character. Without it: plain text to video."),
                io.String.Input("first", multiline=True, default="", tooltip=FIRST_TOOLTIP),
                io.String.Input("later", multiline=True, default="", tooltip=LATER_TOOLTIP),
                *size_inputs(),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Denoising steps: 20 to 50 are usual."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Of the noise. The same seed gives the same video.",
                ),
                *_advanced_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The video: VAE Decode makes frames of it."),
                io.Latent.Output(
                    display_name="reference_latent",
                    tooltip="The reference as the model redraws it, where it should look like the first frame. "
                    "Zeros without a reference.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        first: str | None = None,
        later: str | None = None,
        width: int | None = None,
        height: int | None = None,
        length: int | None = None,
        guidance_low: float | None = None,
        guidance_high: float | None = None,
    ) -> bool | str:
        """Empty prompts, impossible sizes and intervals are told before the run."""
        mistake = prompt_mistake(first, later) or size_mistake(width, height, length)
        return mistake or _interval_mistake(guidance_low, guidance_high) or True

    @classmethod
    def execute(
        cls, model: Any, clip: Any, reference: tuple[ReferencePicture, ...] = (), **settings: Any
    ) -> io.NodeOutput:
        """Encode, apply, sample."""
        prompt = TwoStagePrompt(settings["first"], settings["later"])
        size = checked_size(settings["width"], settings["height"], settings["length"])
        config = config_of(model)
        guidance = make_guidance(
            settings["guidance"],
            config,
            guidance_scale=own_number("guidance_scale", settings["guidance_scale"]),
            reference_scale=own_number("reference_scale", settings["reference_scale"])
            if settings["guidance"] == "dual"
            else None,
            interval=(settings.get("guidance_low", 0.0), settings.get("guidance_high", 1.0)),
        )
        positive, negative = encode_prompt(clip, prompt, settings["negative"])
        positive = apply_references(
            model,
            positive,
            negative,
            reference,
            size,
            emphasis=settings["emphasis"],
            gap=own_number("gap", settings["gap"]),
        )
        say_how_familiar(getattr(cls.hidden, "unique_id", None), reference)
        video, redrawn = sample(
            ReferenceGuider(model, positive, negative, guidance),
            empty_latents(config, size, settings["length"], 1),
            sampler_name=settings["sampler_name"],
            steps=settings["steps"],
            shift=own_number("shift", settings["shift"]),
            seed=settings["seed"],
        )
        shown = empty_latents(config, size, 1, 1) if redrawn is None else redrawn
        return io.NodeOutput({"samples": video}, {"samples": shown})


def _advanced_inputs() -> list[Any]:
    return [
        io.String.Input("negative", multiline=True, default="", advanced=True, tooltip=NEGATIVE_TOOLTIP),
        io.Combo.Input(
            "guidance",
            options=["cfg", "dual"],
            default="cfg",
            advanced=True,
            tooltip="cfg: two passes a step. dual: three, with the picture guided apart from the prompt.",
        ),
        io.Float.Input(
            "guidance_scale", default=0.0, advanced=True, tooltip=f"How hard the prompt pulls. {_OWN}", **_SCALE
        ),
        io.Float.Input(
            "reference_scale",
            default=0.0,
            advanced=True,
            tooltip=f"How hard the picture pulls, with dual guidance. {_OWN}",
            **_SCALE,
        ),
        _advanced(emphasis_input()),
        io.Combo.Input(
            "sampler_name",
            options=sampler_names(),
            default="euler",
            advanced=True,
            tooltip="The sampling method: any of ComfyUI's. dpm_fast and dpm_adaptive end noisy on this kind of model.",
        ),
        io.Float.Input(
            "shift",
            default=0.0,
            advanced=True,
            tooltip=f"Moves the schedule towards noise: more for motion and layout, less for detail. {_OWN}",
            **_SCALE,
        ),
        io.Float.Input("gap", default=0.0, min=0.0, max=100.0, step=0.5, advanced=True, tooltip=GAP_TOOLTIP),
        *_interval_inputs(),
    ]


def _interval_mistake(low: float | None, high: float | None) -> str | None:
    """What is wrong with an interval, before the run; values that come over a link are not known yet (None)."""
    if low is None or high is None:
        return None
    try:
        check_interval((low, high))
    except InputError as error:
        return str(error)
    return None


def _interval_inputs() -> list[Any]:
    """Where guidance acts, last so that saved workflows keep their values."""
    level = {"min": 0.0, "max": 1.0, "step": 0.01, "optional": True, "advanced": True}
    return [
        io.Float.Input("guidance_low", default=0.0, tooltip=f"{_INTERVAL} Lowest noise level of them.", **level),
        io.Float.Input("guidance_high", default=1.0, tooltip=f"{_INTERVAL} Highest noise level of them.", **level),
    ]


def _advanced(given: Any) -> Any:
    given.advanced = True
    return given
