"""How a model is run: what is added to its weights, which kernels work on them. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .errors import InputError
from .kinds import ModelKind

ATTENTIONS = ("sdpa", "flash", "sage", "auto")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to add, and how strongly.

    Attributes:
        path: the file.
        strength: factor of what it adds: 1 as trained, negative for its opposite.
    """

    path: Path
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a model is run, apart from what is made with it.

    Attributes:
        loras: added to the transformer's weights, in this order.
        attention: one of `ATTENTIONS`.
        compile: whether the blocks are compiled.
    """

    loras: tuple[LoraFile, ...] = ()
    attention: str = "sdpa"
    compile: bool = False

    def check(self, kind: ModelKind) -> None:
        """Refuse what this model cannot do.

        Raises:
            InputError: naming the option and what to do.
        """
        asked = {
            "--lora": bool(self.loras),
            "--attention": self.attention not in ("sdpa", "auto"),
            "--compile": self.compile,
        }
        for option, given in asked.items():
            if given and kind.hosted:
                raise InputError(
                    f"{option} is for the models on our transformer; with --model {kind.name} leave it out."
                )

    def settled(self, *, attention: str) -> Execution:
        """The same with what `auto` turned out to be."""
        return replace(self, attention=attention)


PLAIN = Execution()
"""As the weights are, by torch's own kernels."""
