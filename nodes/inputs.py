"""Inputs that several nodes share, and their checks before a run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from comfy_api.latest import io

from ..contextanyone_core.errors import InputError
from ..contextanyone_core.prompts import TwoStagePrompt
from ..contextanyone_core.shapes import check_frames, check_side, require_whole
from ._comfy.poses import Following

if TYPE_CHECKING:
    from torch import Tensor

    from ._comfy.types import Vae

CATEGORY = "ContextAnyone"
Reference = io.Custom("CONTEXTANYONE_REFERENCE")
Pose = io.Custom("CONTEXTANYONE_POSE")
Keypoints = io.Custom("POSE_KEYPOINT")

FIRST_TOOLTIP = 'How the first picture of the video looks: "A woman with red hair standing in a park."'
LATER_TOOLTIP = 'What happens then: "The same woman is waving at the beach."'
NEGATIVE_TOOLTIP = (
    "What to keep away from. Empty for the miniature; Wan's models know their own Chinese one, "
    "as in workflows 08 to 13."
)
EMPHASIS_TOOLTIP = (
    "Strength of Emphasize-Attention, the second look at the reference in every block: 1 as trained, 0 without, above "
    "1 holds on to the picture harder."
)
POSE_TOOLTIP = "From ContextAnyone Pose: how the person moves. The model has to be made for poses."
STRENGTH_TOOLTIP = "Factor of the pose: 1 as trained, 0 is no pose."
START_TOOLTIP = "The video's first frame, of the video's aspect. The model has to be made for it."
FOLLOWING_VAE_TOOLTIP = "The video VAE, for pose and start_frame. With a reference it is not needed: its VAE is taken."
GAP_TOOLTIP = "Latent frames between the reference and the video in time. 0 takes the model's own (10)."


@dataclass(frozen=True)
class Range:
    """The limits of a number: of its widget, and of a value that comes over a link."""

    low: float
    high: float
    step: float
    own: bool = False

    @property
    def zero(self) -> str:
        """What an error message adds where 0 means the model's own value."""
        return ", and 0 takes the model's own" if self.own else ""

    def input(
        self, name: str, default: float, tooltip: str, *, advanced: bool = False, optional: bool = False
    ) -> io.Float.Input:
        """The widget."""
        low, high, step = self.low, self.high, self.step
        more = {"min": low, "max": high, "step": step}
        return io.Float.Input(name, default=default, tooltip=tooltip, advanced=advanced, optional=optional, **more)

    def whole(self, name: str, default: int, tooltip: str, *, advanced: bool = False) -> io.Int.Input:
        """The widget of a whole number."""
        low, high, step = int(self.low), int(self.high), int(self.step) if self.step > 1 else None
        return io.Int.Input(name, default=default, min=low, max=high, step=step, advanced=advanced, tooltip=tooltip)


_SCALE = Range(0.0, 100.0, 0.1, own=True)
RANGES = {
    "width": Range(16, 16384, 16),
    "height": Range(16, 16384, 16),
    "length": Range(1, 16385, 4),
    "batch_size": Range(1, 64, 1),
    "steps": Range(1, 1000, 1),
    "seed": Range(0, 2**64 - 1, 1),
    "emphasis": Range(0.0, 4.0, 0.05),
    "gap": Range(0.0, 100.0, 0.5, own=True),
    "guidance_scale": _SCALE,
    "reference_scale": _SCALE,
    "shift": _SCALE,
    "guidance_low": Range(0.0, 1.0, 0.01),
    "guidance_high": Range(0.0, 1.0, 0.01),
    "person": Range(0, 999, 1),
    "fps": Range(0.0, 1000.0, 0.01),
    "pose_strength": Range(0.0, 10.0, 0.05),
    "strength": Range(-10.0, 10.0, 0.05),
    "pose_start": Range(0.0, 1.0, 0.01),
    "pose_end": Range(0.0, 1.0, 0.01),
}
_WHOLE = ("width", "height", "length", "batch_size", "steps", "seed", "person")
_FROM_ZERO = ("seed", "person")


class SizeSettings(TypedDict):
    """Size of the video: pixels and frames."""

    width: int
    height: int
    length: int


class FollowingSettings(TypedDict, total=False):
    """What a video follows, of the nodes that make one."""

    pose: object
    pose_strength: float
    start_frame: Tensor
    vae: Vae


def following_inputs() -> list[io.InputBase]:
    """Pose, start frame and their VAE, last so that saved workflows keep their values."""
    return [
        Pose.Input("pose", optional=True, tooltip=POSE_TOOLTIP),
        RANGES["pose_strength"].input("pose_strength", 1.0, STRENGTH_TOOLTIP, advanced=True, optional=True),
        io.Image.Input("start_frame", optional=True, tooltip=START_TOOLTIP),
        io.Vae.Input("vae", optional=True, tooltip=FOLLOWING_VAE_TOOLTIP),
    ]


def following_of(settings: FollowingSettings) -> Following:
    """What is connected of these inputs.

    Raises:
        InputError: one of them is null: the node in front gave nothing.
    """
    for name in ("pose", "start_frame", "vae"):
        if name in settings and settings[name] is None:
            raise InputError(f"{name} is null; connect what gives it, or disconnect the input.")
    return Following(
        settings.get("pose"), settings.get("pose_strength", 1.0), settings.get("start_frame"), settings.get("vae")
    )


def size_inputs() -> list[io.Int.Input]:
    """Width, height and length."""
    return [
        RANGES["width"].whole("width", 832, "Width of the video in pixels, a multiple of 16."),
        RANGES["height"].whole("height", 480, "Height of the video in pixels, a multiple of 16."),
        RANGES["length"].whole("length", 81, "Frames of the video: 4k + 1, such as 17 or 81."),
    ]


def emphasis_input(*, advanced: bool = False) -> io.Float.Input:
    """Strength of Emphasize-Attention."""
    return RANGES["emphasis"].input("emphasis", 1.0, EMPHASIS_TOOLTIP, advanced=advanced)


def gap_input() -> io.Float.Input:
    """The distance between references and video."""
    return RANGES["gap"].input("gap", 0.0, GAP_TOOLTIP, advanced=True)


def prompt_input(name: str, tooltip: str, *, advanced: bool = False) -> io.String.Input:
    """A prompt as in CLIP Text Encode: the page resolves {a|b} and drops comments when Run is pressed."""
    return io.String.Input(name, multiline=True, dynamic_prompts=True, default="", advanced=advanced, tooltip=tooltip)


def own_number(value: float) -> float | None:
    """The number, or None for 0, which means the model's own."""
    return value or None


def check_numbers(**given: object) -> None:
    """Refuse the first of these numbers that is out of its range, by name.

    `validate_inputs` raises this too, where a message would be repeated for every checked input. Numbers that
    come over a link are not known there (None) and are checked in the run.

    Raises:
        InputError: naming the number and what it may be.
    """
    for name, value in given.items():
        if value is not None:
            _check(name, value)


def _check(name: str, value: object) -> None:
    allowed = RANGES[name]
    if name in _WHOLE:
        number: float = require_whole(name, value, 0 if name in _FROM_ZERO else 1)
    else:
        number = _finite(name, value, allowed)
    if number > allowed.high:
        most = f"{allowed.high:g}" if isinstance(allowed.high, float) else allowed.high
        raise InputError(f"{name} is {number}; it must be at most {most}{allowed.zero}.")
    if name == "length":
        check_frames(value, name)
    elif name in ("width", "height"):
        check_side(value, name)


def _finite(name: str, value: object, allowed: Range) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        low, high = allowed.low, allowed.high
        raise InputError(f"{name} is {value}; it must be a number from {low:g} to {high:g}{allowed.zero}.")
    if value < allowed.low:
        raise InputError(f"{name} is {value}; it must be at least {allowed.low:g}{allowed.zero}.")
    return value


def check_prompts(first: object, later: object) -> None:
    """Refuse two empty prompts; a prompt that comes over a link is not known before the run (None).

    Raises:
        InputError: both are empty.
    """
    if isinstance(first, str) and isinstance(later, str):
        TwoStagePrompt(first, later)


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """Refuse a name that is not in a list; one that comes over a link is not known before the run (None).

    Raises:
        InputError: with the nearest names, or all where there are few.
    """
    if value is None or value in options:
        return
    near = difflib.get_close_matches(str(value), options, n=3) or options[:12]
    raise InputError(f"{name} is {value!r}; it must be one of the list, such as {', '.join(near)}.")
