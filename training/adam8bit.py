"""AdamW with its two moments in 8 bits, by torchao: a quarter of their memory, in blocks of 256 with a scale each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from contextanyone_core.errors import MissingDependencyError

_BLOCK, _SMALL = 256, 4096  # torchao keeps moments in float32 that have fewer elements, or no whole blocks
_PIECES = ("codes", "scale", "qmap")


def adamw_8bit(groups: Sequence[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """The optimizer. Its update is compiled at the first step.

    Raises:
        MissingDependencyError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit  # an import of a second that other trainings do not need
    except ImportError:
        raise MissingDependencyError(
            "optim.optimizer: adamw8bit needs torchao, which is not installed: pip install torchao."
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **options)
    return optimizer


def pieces(moment: Tensor) -> dict[str, Tensor]:
    """The plain tensors of a moment, by what to add to its name: one, or those of 8 bits."""
    if not hasattr(moment, "codes"):
        return {"": moment}
    return {f".{piece}": getattr(moment, piece) for piece in _PIECES}


def joined(state: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state of moments that `pieces` took apart; others stay as they are."""
    found = {name: tensor for name, tensor in state.items() if "." not in name}
    for moment in sorted({name.partition(".")[0] for name in state if "." in name}):
        from torchao.optim.subclass_8bit import OptimState8bit

        codes, scale, qmap = (state[f"{moment}.{piece}"] for piece in _PIECES)
        found[moment] = OptimState8bit(codes, scale, qmap, bool((qmap < 0).any()), parameter.dtype)
    return found


def state_bytes(parameter: Tensor) -> int:
    """Memory of a float32 parameter's state, its step among it."""
    count = parameter.numel()
    in_blocks = count >= _SMALL and count % _BLOCK == 0
    return 4 + 2 * (count + 4 * (count // _BLOCK) + 4 * 256 if in_blocks else 4 * count)
