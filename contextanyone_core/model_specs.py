"""The models that `generate` runs, and the options that each supports; no heavy library is imported here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .config import ContextAnyoneConfig
from .errors import InputError
from .prompts import DEFAULT_NEGATIVE, WAN_NEGATIVE

MINIATURE = Path(__file__).parent / "miniature"
"""Folder of the shipped weights."""

_WAN_TEXT_LEN = 512


@dataclass(frozen=True)
class ModelSpec:
    """One of the models and the options that it supports.

    Attributes:
        name: value of `--model`.
        title: name in messages, spelled as by its authors.
        family: prefix of the family of its public transformer files (`weights.recognition`), "" for ours.
        guidances: supported names of `make_guidance`, the default first.
        references: whether it takes reference pictures.
        emphasis: whether it has Emphasize-Attention.
        negative: its own negative prompt, at full size.
        hosted: whether it runs in diffusers, and not on our transformer.
        conditions: whether there are files of it, or LoRAs, with which it takes poses and a start frame.
        cut_out: whether its references are subjects cut out on white.
        own_size: whether its references keep their own size, and are not fitted into the video's.
        one_stream: whether its references are tokens of the video's own stream, in every pass: nothing is cached.
        shift: its own shift of the sigma schedule at full size; None is the config's.
        dual_scales: its own scales of `dual` guidance at full size, which projects there; None is the config's.
        task: the sentence that its prompts begin with at full size, without and with pictures.
    """

    name: str
    title: str
    family: str
    guidances: tuple[str, ...]
    references: bool
    emphasis: bool
    negative: str
    hosted: bool = False
    conditions: bool = False
    cut_out: bool = False
    own_size: bool = False
    one_stream: bool = False
    shift: float | None = None
    dual_scales: tuple[float, float] | None = None
    task: tuple[str, str] = ("", "")

    def own_task(self, text_len: int, *, pictures: bool) -> str:
        """What its prompts begin with; nothing below Wan's size."""
        return self.task[pictures] if is_full_size(text_len) else ""

    def own_negative(self, text_len: int) -> str:
        """The default negative prompt; empty below Wan's size, where text encoders were not trained on the long one."""
        return self.negative if is_full_size(text_len) else DEFAULT_NEGATIVE

    def own_config(self, config: ContextAnyoneConfig) -> ContextAnyoneConfig:
        """The config of a file of it, with what the tensors of a full-size file cannot state."""
        if not is_full_size(config.text_len):
            return config
        config = config if self.shift is None else replace(config, shift=self.shift)
        if self.dual_scales is None:
            return config
        return replace(config, dual_scales=self.dual_scales, projected_guidance=True)

    def check(
        self,
        *,
        guidance: str | None,
        references: int,
        emphasis: float | None,
        interval: bool = False,
        condition: bool = False,
    ) -> None:
        """Refuse what the model does not have; None was not requested.

        Raises:
            InputError: the model does not support an option; the message names it and the remedy.
        """
        if guidance is not None and guidance not in self.guidances:
            raise InputError(f"{self.title} has no {guidance} guidance; with --model {self.name} use cfg.")
        if interval and self.hosted:
            raise InputError(
                f"{self.title} is guided at every step; with --model {self.name} leave --guidance-interval out."
            )
        if condition and not self.conditions:
            raise InputError(
                f"{self.title} takes no pose and no start frame; with --model {self.name} leave --pose and "
                "--start-frame out."
            )
        if references and not self.references:
            raise InputError(f"{self.title} reads no pictures; leave --reference out, or use another --model.")
        if emphasis is not None and not self.emphasis:
            raise InputError(f"{self.title} has no Emphasize-Attention; with --model {self.name} leave --emphasis out.")


def is_full_size(text_len: int) -> bool:
    """Whether a text encoder with this `text_len` is Wan's, not a miniature."""
    return text_len >= _WAN_TEXT_LEN


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec("contextanyone", "ContextAnyone", "", ("cfg", "dual"), True, True, DEFAULT_NEGATIVE, conditions=True),
        ModelSpec("wan", "Wan 2.1", "Wan 2.1 T2V", ("cfg",), False, False, WAN_NEGATIVE, conditions=True),
        ModelSpec("phantom", "Phantom", "Phantom-Wan", ("dual", "cfg"), True, False, WAN_NEGATIVE, one_stream=True),
        ModelSpec(
            "refalign",
            "RefAlign",
            "RefAlign",
            ("dual", "cfg"),
            True,
            False,
            WAN_NEGATIVE,
            cut_out=True,
            one_stream=True,
        ),
        ModelSpec(
            "bernini",
            "Bernini",
            "Bernini-R",
            ("dual", "cfg"),
            True,
            False,
            WAN_NEGATIVE,
            own_size=True,
            one_stream=True,
            shift=3.0,
            dual_scales=(4.0, 4.5),
            task=(
                "You are a helpful assistant specialized in text-to-video generation.",
                "You are a helpful assistant specialized in subject-to-video generation.",
            ),
        ),
        ModelSpec("vace", "VACE", "Wan VACE", ("cfg",), True, False, WAN_NEGATIVE, hosted=True),
    )
}
"""Models by name; the first is the default."""
