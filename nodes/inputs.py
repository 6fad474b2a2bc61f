"""Inputs that several nodes share, and their checks before a run."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..contextanyone_core.errors import InputError
from ..contextanyone_core.prompts import TwoStagePrompt
from ..contextanyone_core.shapes import check_frames, check_side

CATEGORY = "ContextAnyone"
Reference = io.Custom("CONTEXTANYONE_REFERENCE")

FIRST_TOOLTIP = 'How the first picture of the video looks: "A woman with red hair standing in a park."'
LATER_TOOLTIP = 'What happens then: "The same woman is waving at the beach."'
NEGATIVE_TOOLTIP = "What to keep away from. Empty is fine; the miniature has never seen a negative prompt."
EMPHASIS_TOOLTIP = (
    "Strength of Emphasize-Attention, the second look at the reference in every block: 1 as trained, 0 without, above "
    "1 holds on to the picture harder."
)
GAP_TOOLTIP = "Latent frames between the reference and the video in time. 0 takes the model's own (10)."


_LARGEST = {"width": 16384, "height": 16384, "length": 16385}


def size_inputs() -> list[Any]:
    """Width, height and length."""
    side = {"min": 16, "max": _LARGEST["width"], "step": 16}
    return [
        io.Int.Input("width", default=832, tooltip="Width of the video in pixels, a multiple of 16.", **side),
        io.Int.Input("height", default=480, tooltip="Height of the video in pixels, a multiple of 16.", **side),
        io.Int.Input(
            "length",
            default=81,
            min=1,
            max=_LARGEST["length"],
            step=4,
            tooltip="Frames of the video: 4k + 1, such as 17 or 81.",
        ),
    ]


def emphasis_input() -> Any:
    """The artist's knob."""
    return io.Float.Input("emphasis", default=1.0, min=0.0, max=4.0, step=0.05, tooltip=EMPHASIS_TOOLTIP)


def own_number(name: str, value: float) -> float | None:
    """None where a number is 0, which means: the model's own. Raises InputError below 0."""
    if value < 0:
        raise InputError(f"{name} is {value}; it must be at least 0, and 0 takes the model's own.")
    return value or None


def checked_size(width: int, height: int, length: int) -> tuple[int, int]:
    """(height, width), in the run: what came over a link was not known before.

    Raises:
        InputError: a size that cannot be made.
    """
    mistake = size_mistake(width, height, length)
    if mistake is not None:
        raise InputError(mistake)
    return height, width


def size_mistake(width: int | None, height: int | None, length: int | None) -> str | None:
    """What is wrong with a size, before the run; values that come over a link are not known yet (None)."""
    try:
        for name, value in (("width", width), ("height", height), ("length", length)):
            if value is not None:
                _check(name, value)
    except InputError as error:
        return str(error)
    return None


def _check(name: str, value: int) -> None:
    if name == "length":
        check_frames(value, name)
    else:
        check_side(value, name)
    if value > _LARGEST[name]:
        raise InputError(f"{name} is {value}; it must be at most {_LARGEST[name]}.")


def prompt_mistake(first: str | None, later: str | None) -> str | None:
    """What is wrong with a prompt, before the run."""
    if first is None or later is None:
        return None
    try:
        TwoStagePrompt(first, later)
    except InputError as error:
        return str(error)
    return None
