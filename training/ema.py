"""An exponential moving average of the trained weights, which is sampled, exported and shipped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """A float32 average of named parameters, `average += (1 - decay) * (parameter - average)` after every update.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over the n updates so far, so that the initial
    random weights do not stay in the average.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = dict(parameters)
        self.tensors: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        self._kept: dict[str, Tensor] = {}  # the parameters' own values, while the average replaces them

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), present, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the parameters by the average; at the end they are restored, bit for bit.

        A signal at the end may interrupt this: `put_back` completes it.
        """
        self.put_back()
        shards = {name: p.to_local().clone() for name, p in self._parameters.items() if isinstance(p, DTensor)}
        self._kept = {name: shards.get(name, p.data) for name, p in self._parameters.items()}
        try:
            for name in self._parameters:
                self._set(name, self.tensors[name])
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Restore parameters that `in_place` has not restored: to be called before they are used again."""
        for name, tensor in self._kept.items():
            self._set(name, tensor)
        self._kept = {}

    @torch.no_grad()
    def _set(self, name: str, value: Tensor) -> None:
        """Replace a parameter; of a shard the content, as FSDP2 gathers from its memory."""
        parameter = self._parameters[name]
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(value.to_local() if isinstance(value, DTensor) else value)
        else:
            parameter.data = value.to(parameter.dtype)
