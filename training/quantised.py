"""Frozen linear layers stored in 8 bits: a LoRA trains over them on cards that cannot hold them in float32.

Each row of a matrix has a scale of its own (absmax). A product computes with the 8-bit values, which bf16 and float32
hold exactly, and multiplies its result by the scales; nothing but the stored form is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contextanyone_core.model.precision import under_autocast

Storage = Literal["float32", "int8", "fp8"]
_FP8 = torch.float8_e4m3fn
_LARGEST = {"int8": 127.0, "fp8": torch.finfo(_FP8).max}


def quantise_frozen(modules: Iterable[nn.Module], storage: Storage) -> None:
    """Replace the linear layers inside the modules whose weight is not trained; a bias stays as it is."""
    if storage == "float32":
        return
    for module in modules:
        for parent in list(module.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear and not layer.weight.requires_grad:
                    setattr(parent, name, QuantisedLinear(layer, storage))


class QuantisedLinear(nn.Module):
    """A linear layer with a frozen 8-bit weight, (out, in) int8 bytes, and its rows' scales (out,) in bf16.

    fp8 (e4m3) is stored as its bytes: not every communication backend knows it.
    """

    def __init__(self, layer: nn.Linear, storage: Storage) -> None:
        super().__init__()
        stored, scale = quantise(layer.weight.detach(), storage)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias: nn.Parameter | None = layer.bias
        self._fp8 = storage == "fp8"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's dtype or autocast's."""
        if under_autocast(x.device):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        values = self.weight.view(_FP8) if self._fp8 else self.weight
        product: Tensor = _Product.apply(x, values, self.scale)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)


def quantise(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """The bytes (out, in) and scales (out,) of a matrix; scale * value is as near to it as 8 bits allow."""
    largest = _LARGEST[storage]
    # Rounded to bf16 before the division, so that a product in bf16 does not round it once more.
    scale = (weight.abs().amax(dim=1).clamp(min=1e-12) / largest).to(torch.bfloat16)
    scaled = (weight / scale.float()[:, None]).clamp(-largest, largest)
    return (scaled.round().to(torch.int8) if storage == "int8" else scaled.to(_FP8).view(torch.int8)), scale


class _Product(torch.autograd.Function):
    """x @ (scale * values)^T; the gradient goes to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(values, scale)
        return (x @ values.to(x.dtype).t()) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, scale = ctx.saved_tensors
        (gradient,) = gradients
        return (gradient * scale.to(gradient.dtype)) @ values.to(gradient.dtype), None, None
