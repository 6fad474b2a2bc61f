"""What a set of tensors lacks, has beyond, and has in another shape than is needed, and the sentence that tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

_LISTED = 12


class Shaped(Protocol):
    """A tensor, or what is known of one."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sides."""


@dataclass(frozen=True)
class Differences:
    """Names of tensors; nothing in it where all fits. `str()` is a clause such as "1 missing: head.head.bias".

    Attributes:
        missing, unknown: names.
        wrong_shape: such as "head.modulation is 1x2x5, needed 1x2x48".
    """

    missing: list[str]
    unknown: list[str]
    wrong_shape: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.wrong_shape)

    def __str__(self) -> str:
        parts = (("missing", self.missing), ("unknown", self.unknown), ("of the wrong shape", self.wrong_shape))
        return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)


def compare(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Shaped], unknown: Iterable[str] = ()
) -> Differences:
    """Compare tensors by name and shape.

    Args:
        expected: name -> shape of every tensor that is needed.
        found: what there is, by name.
        unknown: names beyond those of `found` that nothing can be made of.
    """
    wrong = [
        f"{name} is {_sides(found[name].shape)}, needed {_sides(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    missing = [name for name in expected if name not in found]
    return Differences(missing, [name for name in found if name not in expected] + list(unknown), wrong)


def expected_tensors(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a module's weight file must hold."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def listed(names: Sequence[str]) -> str:
    """The first of the names, without what would steer a terminal, and how many more there are."""
    first = ", ".join(name if name.isprintable() else repr(name) for name in names[:_LISTED])
    return first if len(names) <= _LISTED else f"{first} and {len(names) - _LISTED} more"


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
