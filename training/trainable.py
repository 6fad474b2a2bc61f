"""What of a network is trained, chosen by patterns over its parameters' names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict
from torch import nn

from contextanyone_core.errors import InputError


class TrainSettings(BaseModel):
    """Patterns over parameter names, such as `blocks.*.cross_attn.*`; `*` stands for any characters, dots too.

    Attributes:
        only: train what matches one of these; none is everything.
        freeze: of that, leave out what matches one of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


def trained_names(names: Iterable[str], settings: TrainSettings) -> list[str]:
    """The names of what is trained, in their order.

    Raises:
        InputError: a pattern matches no name, or nothing is left to train.
    """
    known = list(names)
    for key in ("only", "freeze"):
        for pattern in getattr(settings, key):
            if not any(fnmatchcase(name, pattern) for name in known):
                near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
                raise InputError(
                    f"part.train.{key} has the pattern {pattern}, which matches no parameter; one is {near[0]}."
                )
    kept = [name for name in known if not settings.only or _matches(name, settings.only)]
    kept = [name for name in kept if not _matches(name, settings.freeze)]
    if not kept:
        raise InputError("part.train leaves nothing to train: every parameter that `only` names is frozen.")
    return kept


def choose_trained(module: nn.Module, settings: TrainSettings) -> None:
    """Let exactly the chosen parameters have gradients; raises as `trained_names`."""
    chosen = set(trained_names((name for name, _ in module.named_parameters()), settings))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
