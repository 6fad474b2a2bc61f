"""Tensors that stand for those of a card on a machine without one: they note what would make the host wait."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

_READS = {
    *("item", "tolist", "cpu", "numpy", "nonzero", "equal", "__bool__", "__float__", "__int__", "__index__"),
    "new_tensor",  # a copy from memory that is not pinned
}

CARD = torch.device("cuda")


class OnDevice(Tensor):
    """A tensor that a card would have; so is whatever is computed from one. What makes the host wait is noted."""

    reads: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        index = args[1] if name == "__getitem__" else None
        waits = isinstance(index, list) or (isinstance(index, Tensor) and index.dtype == torch.bool)
        if (name in _READS or waits) and isinstance(args[0], cls):
            cls.reads.append(name)
        return super().__torch_function__(function, types, args, kwargs or {})


class OnCard(OnDevice):
    """One that says so."""

    device = property(lambda _: CARD)  # type: ignore[assignment]
