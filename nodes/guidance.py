"""The nodes that guide and sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, Unpack

from comfy_api.latest import io

from ..contextanyone_core.prompts import TwoStagePrompt
from ..contextanyone_core.sampling.guidance import CfgGuidance, DualGuidance, check_interval, make_guidance
from ..contextanyone_core.sampling.names import GUIDANCES
from ._comfy.notes import reference_note, size_note
from ._comfy.personal import with_person
from ._comfy.poses import condition_values, follow
from ._comfy.references import (
    PromptNames,
    ReferencePicture,
    apply_references,
    config_of,
    empty_latents,
    encode_prompt,
    given_references,
)
from ._comfy.sampling import ReferenceGuider, sample, sampler_names
from ._comfy.types import Clip, Conditioning, Model
from .inputs import (
    CATEGORY,
    FIRST_TOOLTIP,
    LATER_TOOLTIP,
    NEGATIVE_TOOLTIP,
    RANGES,
    FollowingSettings,
    Reference,
    SizeSettings,
    check_choice,
    check_numbers,
    check_prompts,
    emphasis_input,
    following_inputs,
    following_of,
    gap_input,
    own_number,
    prompt_input,
    size_inputs,
)

_OWN = "0 takes the model's own."
_INTERVAL = "Steps between two noise levels (0 clean, 1 noise) are guided, others make one pass, without the negative."
_NAMES = PromptNames(
    positive="The prompt (first and later of ContextAnyone Sampler together)",
    first="The first-frame prompt (first of ContextAnyone Sampler)",
    negative="The negative prompt (negative of ContextAnyone Sampler)",
)


class SamplerSettings(SizeSettings, FollowingSettings):
    """The widgets of ContextAnyone Sampler."""

    first: str
    later: str
    steps: int
    seed: int
    negative: str
    guidance: str
    guidance_scale: float
    reference_scale: float
    emphasis: float
    sampler_name: str
    shift: float
    gap: float
    guidance_low: NotRequired[float]
    guidance_high: NotRequired[float]


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
                RANGES["guidance_scale"].input("guidance_scale", 0.0, f"How hard the prompt pulls. {_OWN}"),
                RANGES["reference_scale"].input("reference_scale", 0.0, f"How hard the picture pulls. {_OWN}"),
                *_interval_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        guidance_scale: float | None = None,
        reference_scale: float | None = None,
        guidance_low: float | None = None,
        guidance_high: float | None = None,
    ) -> bool:
        """Scales and an interval that guide nothing are reported before the run.

        Raises:
            InputError: naming the first of them.
        """
        check_numbers(guidance_scale=guidance_scale, reference_scale=reference_scale)
        _check_interval(guidance_low, guidance_high)
        return True

    @classmethod
    def execute(
        cls,
        model: Model,
        positive: Conditioning,
        negative: Conditioning,
        guidance_scale: float,
        reference_scale: float,
        guidance_low: float = 0.0,
        guidance_high: float = 1.0,
    ) -> io.NodeOutput:
        """Make the guider.

        Raises:
            InputError: something that is connected does not fit; the message states the remedy.
        """
        check_numbers(guidance_scale=guidance_scale, reference_scale=reference_scale)
        _check_interval(guidance_low, guidance_high)
        guidance = make_guidance(
            "dual",
            config_of(model),
            guidance_scale=own_number(guidance_scale),
            reference_scale=own_number(reference_scale),
            interval=(guidance_low, guidance_high),
        )
        return io.NodeOutput(ReferenceGuider(model, positive, negative, guidance))


class ContextAnyoneSampler(io.ComfyNode):
    """Prompt, Apply and sampling in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs: what most videos need in sight, the rest under advanced."""
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
                prompt_input("first", FIRST_TOOLTIP),
                prompt_input("later", LATER_TOOLTIP),
                *size_inputs(),
                RANGES["steps"].whole("steps", 20, "Denoising steps: 20 to 50 are usual."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Of the noise. The same seed gives the same video.",
                ),
                *_advanced_inputs(),
                *following_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The video: VAE Decode makes frames of it."),
                io.Latent.Output(
                    display_name="reference_latent",
                    tooltip="The reference as the model redraws it, where it should look like the first frame. "
                    "Zeros without a reference.",
                ),
            ],
            has_intermediate_output=True,  # its note comes with every run, also where the node is cached
        )

    @classmethod
    def validate_inputs(cls, **given: object) -> bool:
        """Empty prompts and numbers and names that no video can be made with are reported before the run.

        Raises:
            InputError: naming the first of them.
        """
        _check(given)
        return True

    @classmethod
    def execute(
        cls, model: Model, clip: Clip, reference: tuple[ReferencePicture, ...] = (), **settings: Unpack[SamplerSettings]
    ) -> io.NodeOutput:
        """Encode, apply, sample.

        Raises:
            InputError, ShapeError: something that is connected does not fit; the message states the remedy.
        """
        _check(settings)
        prompt = TwoStagePrompt(settings["first"], settings["later"])
        reference, following = given_references(reference), following_of(settings)
        size = (settings["height"], settings["width"])
        config = config_of(model)
        guidance = _guidance(model, settings)
        positive, negative = encode_prompt(clip, prompt, settings["negative"])
        positive = apply_references(
            model,
            positive,
            negative,
            reference,
            size,
            emphasis=settings["emphasis"],
            gap=own_number(settings["gap"]),
            names=_NAMES,
        )
        values, told = condition_values(config, following, reference, size, settings["length"])
        positive, negative = follow(values, positive, negative)
        positive, nowhere = with_person(model, positive, following, size, settings["length"])
        note = reference_note(model, reference, "ContextAnyone Sampler", size_note(model, size), *told, nowhere)
        video, redrawn = sample(
            ReferenceGuider(model, positive, negative, guidance),
            empty_latents(config, size, settings["length"], 1),
            sampler_name=settings["sampler_name"],
            steps=settings["steps"],
            shift=own_number(settings["shift"]),
            seed=settings["seed"],
        )
        shown = empty_latents(config, size, 1, 1) if redrawn is None else redrawn
        return io.NodeOutput({"samples": video}, {"samples": shown}, ui=note)


def _check(given: Mapping[str, object]) -> None:
    """Refuse the first widget's value that no video can be made with; those over a link are None before the run."""
    check_prompts(given.get("first"), given.get("later"))
    check_numbers(**{name: given.get(name) for name in RANGES})
    _check_interval(given.get("guidance_low"), given.get("guidance_high"))
    check_choice("guidance", given.get("guidance"), GUIDANCES)
    check_choice("sampler_name", given.get("sampler_name"), sampler_names())


def _guidance(model: Model, settings: SamplerSettings) -> CfgGuidance | DualGuidance:
    dual = settings["guidance"] == "dual"
    return make_guidance(
        settings["guidance"],
        config_of(model),
        guidance_scale=own_number(settings["guidance_scale"]),
        reference_scale=own_number(settings["reference_scale"]) if dual else None,
        interval=(settings.get("guidance_low", 0.0), settings.get("guidance_high", 1.0)),
    )


def _check_interval(low: object, high: object) -> None:
    """Refuse an empty interval of noise levels; those over a link are None before the run."""
    check_numbers(guidance_low=low, guidance_high=high)
    if isinstance(low, int | float) and isinstance(high, int | float):
        check_interval((low, high))


def _advanced_inputs() -> list[io.String.Input | io.Combo.Input | io.Float.Input]:
    return [
        prompt_input("negative", NEGATIVE_TOOLTIP, advanced=True),
        io.Combo.Input(
            "guidance",
            options=list(GUIDANCES),
            default="cfg",
            advanced=True,
            tooltip="cfg: two passes a step. dual: three, with the picture guided apart from the prompt, as RefAlign, "
            "Phantom and Bernini are by their authors.",
        ),
        RANGES["guidance_scale"].input("guidance_scale", 0.0, f"How hard the prompt pulls. {_OWN}", advanced=True),
        RANGES["reference_scale"].input(
            "reference_scale", 0.0, f"How hard the picture pulls, with dual guidance. {_OWN}", advanced=True
        ),
        emphasis_input(advanced=True),
        io.Combo.Input(
            "sampler_name",
            options=sampler_names(),
            default="euler",
            advanced=True,
            tooltip="The sampling method: any of ComfyUI's. dpm_fast and dpm_adaptive end noisy on this kind of model.",
        ),
        RANGES["shift"].input(
            "shift",
            0.0,
            f"Moves the schedule towards noise: more for motion and layout, less for detail. {_OWN}",
            advanced=True,
        ),
        gap_input(),
        *_interval_inputs(),
    ]


def _interval_inputs() -> list[io.Float.Input]:
    """Where guidance acts, last so that saved workflows keep their values."""
    ends = {"guidance_low": (0.0, "Lowest"), "guidance_high": (1.0, "Highest")}
    return [
        RANGES[name].input(name, default, f"{_INTERVAL} {which} noise level of them.", advanced=True, optional=True)
        for name, (default, which) in ends.items()
    ]
