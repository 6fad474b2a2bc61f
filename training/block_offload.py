"""Frozen weights of the blocks in host memory while a network trains, copied to the device a block ahead of their use.

Core's StreamedTransformer exchanges the data of parameters, which a backward pass cannot go through. Here a block is
given copies for one call; activation checkpointing calls it again in the backward pass, in the opposite order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes


class BlockOffload:
    """The frozen matrices of blocks, taken out of them: the blocks' parameters are None between calls.

    At most three blocks' copies are on the device: those of the block that computes, of the next one in the direction
    of the pass, and, where the autograd graph still has them, of the one before. Hooks and compilation of a block's
    `forward` belong inside, activation checkpointing around this.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._places = [_frozen_matrices(block) for block in blocks]
        self._stored: list[list[Tensor]] = [[getattr(*place) for place in places] for places in self._places]
        self._ahead: dict[int, list[nn.Parameter]] = {}
        self._previous, self._direction = -1, 1
        self._stream: Any = None
        for index, block in enumerate(blocks):
            self._fill(index, None)
            block.forward = partial(self._run, index, block.forward)

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace every stored tensor by a function of it, one after the other, so that not all are there twice."""
        for block in self._stored:
            for index, stored in enumerate(block):
                block[index] = function(stored)

    def pinned_bytes(self) -> int:
        """Host memory that the stored tensors take once they are pinned: of each a power of two, as torch allocates."""
        return sum(1 << (stored.nbytes - 1).bit_length() for block in self._stored for stored in block)

    def _run(self, index: int, forward: Callable[..., Any], x: Tensor, *inputs: Any, **options: Any) -> Any:
        self._fill(index, self._take(index, x.device))
        try:
            return forward(x, *inputs, **options)
        finally:  # a checkpoint ends its second pass by an exception
            self._fill(index, None)

    def _fill(self, index: int, weights: Sequence[nn.Parameter] | None) -> None:
        places = self._places[index]
        given: Sequence[nn.Parameter | None] = [None] * len(places) if weights is None else weights
        for (owner, name), weight in zip(places, given, strict=True):
            owner._parameters[name] = weight

    def _take(self, index: int, device: torch.device) -> list[nn.Parameter]:
        """A block's copies; those of the block that is likely the next are begun. At both ends the pass turns."""
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.change(Tensor.pin_memory)
        copies = self._ahead.pop(index, None) or self._copy(index, device)
        if self._stream is not None:
            now = torch.cuda.current_stream(device)
            now.wait_stream(self._stream)
            for copy in copies:
                copy.record_stream(now)
        step = index - self._previous
        self._direction = -self._direction if step == 0 else 1 if step > 0 else -1
        self._previous = index
        following = min(max(index + self._direction, 0), len(self._stored) - 1)
        self._ahead = {following: copies if following == index else self._copy(following, device)}
        return copies

    def _copy(self, index: int, device: torch.device) -> list[nn.Parameter]:
        # Hidden from selective checkpointing, which demands the same operations in both passes.
        with _disable_current_modes(), torch.no_grad(), torch.cuda.stream(self._stream):
            copies = [stored.to(device, non_blocking=True, copy=True) for stored in self._stored[index]]
            return [nn.Parameter(copy, requires_grad=False) for copy in copies]


def _frozen_matrices(block: nn.Module) -> list[tuple[nn.Module, str]]:
    return [
        (owner, name)
        for owner in block.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and parameter.ndim == 2 and not parameter.requires_grad
    ]
