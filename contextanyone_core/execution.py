"""How a model is run: what is added to its weights. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .kinds import ModelKind


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
    """

    loras: tuple[LoraFile, ...] = ()

    def check(self, kind: ModelKind) -> None:
        """Refuse what this model cannot do.

        Raises:
            InputError: naming the option and what to do.
        """
        if self.loras and kind.hosted:
            raise InputError(f"--lora is for the models on our transformer; with --model {kind.name} leave it out.")


PLAIN = Execution()
"""Nothing added."""
