"""Muon for hidden matrices and kernels, AdamW for everything else, as one optimizer with one state.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found with five Newton-Schulz
iterations. The update is scaled to the root mean square that AdamW's usually has (Moonlight, arXiv 2502.16982, section
2.2), so that one learning rate serves both. torch's own Muon takes plain matrices only; the VAE's kernels have four and
five dimensions.
"""

from typing import Any

import torch
from torch import Tensor

from contextanyone_core.runtime.processor import fast_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_ADAMW_RMS = 0.2


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
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(parameter.grad, 1.0 - _MOMENTUM)
            update = orthogonal(parameter.grad.lerp(momentum, _MOMENTUM).flatten(1))  # Nesterov
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            scale = _ADAMW_RMS * max(update.shape) ** 0.5
            parameter.add_(update.view(parameter.shape).to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix (n, m) with singular values of 1: values between about 0.7 and 1.2.

    In bf16, or float32 on a processor that does not compute in bf16.
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrix.to(fast_dtype(matrix.device))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
