"""Comparison of a file's tensors with those that a model needs: missing, unknown, of a wrong shape; as a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

_LISTED = 12


class Shaped(Protocol):
    """A tensor, or a description of one that has its shape."""

    @property
    def shape(self) -> Sequence[int]:
        """Size of each dimension."""


@dataclass(frozen=True)
class Differences:
    """Differences between two sets of tensors, falsy if there are none; `str()` gives "1 missing: head.head.bias".

    Attributes:
        missing, unknown: tensor names.
        wrong_shape: descriptions such as "head.modulation is 1x2x5, needed 1x2x48".
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
        expected: name -> shape of every tensor that the model needs.
        found: the file's tensors, by name.
        unknown: further names in the file, which are not in the naming.
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
    """The first few names, escaped if not printable, and the number of the others."""
    first = ", ".join(name if name.isprintable() else repr(name) for name in names[:_LISTED])
    return first if len(names) <= _LISTED else f"{first} and {len(names) - _LISTED} more"


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
