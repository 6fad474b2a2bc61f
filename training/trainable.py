"""What of a network is trained, chosen by patterns over its parameters' names, and from which step on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contextanyone_core.errors import InputError
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.lora import LoraSettings, add_lora
from training.patterns import matches, require_matches
from training.shares import Shares


class TrainSettings(BaseModel):
    """Patterns over parameter names, such as `blocks.*.cross_attn.*`; `*` matches any characters, dots too.

    Attributes:
        only: train what matches one of these; none is everything.
        freeze: of that, leave out what matches one of these.
        thaw: pattern -> step: of what is trained, what matches stays as it is before that step (the first is 0).
        lr_scale: pattern -> factor of the learning rate; the last pattern that matches a name holds for it.
        lora: in place of `only` and `freeze`: low-rank updates, and the new parts in full.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    thaw: dict[str, Annotated[int, Field(ge=1)]] = {}
    lr_scale: dict[str, Annotated[float, Field(gt=0)]] = {}
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _lora_alone(self) -> Self:
        if self.lora is not None and (self.only or self.freeze):
            raise ValueError("part.train.lora chooses what is trained: leave out part.train.only and freeze")
        return self


def trained_names(names: Iterable[str], settings: TrainSettings) -> list[str]:
    """The names of what `only` and `freeze` choose, in their order.

    Raises:
        InputError: a pattern matches no name, or nothing is left to train.
    """
    known = list(names)
    for key in ("only", "freeze"):
        require_matches(f"part.train.{key}", getattr(settings, key), known, "no parameter")
    kept = [name for name in known if not settings.only or matches(name, settings.only)]
    kept = [name for name in kept if not matches(name, settings.freeze)]
    if not kept:
        raise InputError("part.train leaves nothing to train: every parameter that `only` names is frozen.")
    return kept


def choose_trained(
    transformer: ContextAnyoneTransformer, settings: TrainSettings, shares: Shares | None = None
) -> None:
    """Let exactly the chosen parameters have gradients, now or later.

    Args:
        shares: as of `add_lora`.

    Raises:
        InputError: as `trained_names` and `add_lora`; a pattern of `thaw` or `lr_scale` matches nothing that is
            trained, or `thaw` leaves nothing for the first step.
        MissingDependencyError: a LoRA without peft.
    """
    if settings.lora is not None:
        add_lora(transformer, settings.lora, shares)
    else:
        chosen = set(trained_names((name for name, _ in transformer.named_parameters()), settings))
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(name in chosen)
    trained = [name for name, parameter in transformer.named_parameters() if parameter.requires_grad]
    require_matches("part.train.thaw", settings.thaw, trained, "nothing that is trained")
    require_matches("part.train.lr_scale", settings.lr_scale, trained, "nothing that is trained")
    if len(frozen_names(trained, settings, 0)) == len(trained):
        raise InputError("part.train.thaw leaves nothing to train in the first step.")


def frozen_names(names: Iterable[str], settings: TrainSettings, step: int) -> list[str]:
    """Of the names, those that `thaw` still freezes at a step."""
    patterns = [pattern for pattern, thawed_at in settings.thaw.items() if step < thawed_at]
    return [name for name in names if matches(name, patterns)] if patterns else []


def lr_scales(names: Iterable[str], settings: TrainSettings) -> dict[str, float]:
    """The factor of the learning rate of each name."""
    scales = dict.fromkeys(names, 1.0)
    for pattern, factor in settings.lr_scale.items():
        scales |= {name: factor for name in scales if matches(name, [pattern])}
    return scales
