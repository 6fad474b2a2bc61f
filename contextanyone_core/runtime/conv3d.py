"""3D convolution of a single clip on a CPU by oneDNN's kernel, which torch uses for larger inputs only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_AXES = 3


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv3d`, by oneDNN's kernel for one clip on a CPU in float32.

    For a batch of one, torch uses oneDNN only above 20,480 lines (batch x channels x frames x height), and an
    unvectorised kernel below. Values differ by rounding; gradients are torch's.

    Args:
        x: (B, C, T, H, W), already padded.
        weight: (out, C / groups, kt, kh, kw).
        bias: (out,).
        stride, padding, dilation, groups: as in `torch.conv3d`; the first three a number, or one for each of T, H, W.

    Source: torch, `ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp.
    """
    if _torch_avoids_onednn(x, weight) and not isinstance(padding, str):
        sizes = [_three(value) for value in (padding, stride, dilation)]
        found: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, *sizes, groups)
        return found
    return torch.conv3d(x, weight, bias, stride, padding, dilation, groups)


class OneDnnConv3d(TorchFunctionMode):
    """Context in which `conv3d` of this file replaces torch's in this thread, in libraries' modules too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `torch.conv3d`; every other function is called unchanged."""
        kernel = conv3d if func is torch.conv3d else func
        return kernel(*args, **(kwargs or {}))


def _torch_avoids_onednn(x: Tensor, weight: Tensor) -> bool:
    one_clip = x.ndim == _AXES + 2 and x.shape[0] == 1 and x.numel() > 0
    float32 = x.dtype is torch.float32 and weight.dtype is torch.float32
    ready = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[no-untyped-call]
    return bool(one_clip and float32 and x.device.type == "cpu" and ready and not torch.is_autocast_enabled("cpu"))


def _three(value: Any) -> list[int]:
    return [value] * _AXES if isinstance(value, int) else list(value)
