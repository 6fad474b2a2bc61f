"""Muon for hidden matrices and kernels, AdamW for everything else, as one optimizer with one state.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found with five Newton-Schulz
iterations. The update is scaled to the root mean square that AdamW's usually has (Moonlight, arXiv 2502.16982, section
2.2), so that one learning rate serves both. torch's own Muon takes plain matrices only; the VAE's kernels have four and
five dimensions.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from contextanyone_core.runtime.processor import fast_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_ADAMW_RMS = 0.2
_STACKED = 1 << 19  # numbers in the matrices that are multiplied at once


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with ``muon`` set take Muon's update instead; those hold tensors of two or more dimensions."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the loop has no closure and no loss here
        """One update of every parameter that has a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step(closure)
        self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._muon(group)

    def _muon(self, group: dict[str, Any]) -> None:
        for parameters in _stacks([parameter for parameter in group["params"] if parameter.grad is not None]):
            updates = orthogonal(torch.stack([self._direction(parameter).flatten(1) for parameter in parameters]))
            scale = _ADAMW_RMS * max(updates.shape[1:]) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view(parameter.shape).to(parameter.dtype), alpha=-group["lr"] * scale)

    def _direction(self, parameter: Tensor) -> Tensor:
        """The gradient with Nesterov's momentum, which is updated."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1.0 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def _stacks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in lists of one matrix shape, each so short that its matrices stay in a processor's cache."""
    alike: dict[tuple[int, int], list[Tensor]] = {}
    for parameter in parameters:
        shape = parameter.shape[0], parameter[0].numel()
        stack = alike.setdefault(shape, [])
        stack.append(parameter)
        if (len(stack) + 1) * parameter.numel() > _STACKED:
            yield alike.pop(shape)
    yield from alike.values()


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest matrices (k, n, m) with singular values of 1: values between about 0.7 and 1.2.

    In bf16, or float32 on a processor that does not compute in bf16.
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices.to(fast_dtype(matrices.device))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).contiguous()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
