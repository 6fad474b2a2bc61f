"""Pose and start frame of a video, encoded by its VAE."""

from __future__ import annotations

import math

import torch

from ..errors import InputError
from ..model.condition import VideoCondition
from .reference import VideoEncoder, fitted_size, pad_picture


def encode_condition(
    encoder: VideoEncoder, pose: torch.Tensor | None, start: torch.Tensor | None, size: tuple[int, int]
) -> VideoCondition:
    """Encode what a video of `size` = (height, width) follows; None stays absent.

    Args:
        encoder: the video VAE; the latents are as it gives them.
        pose: drawn poses (1, 3, T, H, W) in [-1, 1], of the video's own size.
        start: the clean first frame (1, 3, h, w) in [-1, 1], of the video's aspect.

    Raises:
        InputError: the start frame has another aspect.
    """
    if start is not None:
        height, width = start.shape[2:]
        if fitted_size((height, width), size) != size:
            raise InputError(
                f"The start frame is {width} x {height} pixels, the video {size[1]} x {size[0]}; it is the video's "
                f"first frame, so it must have the same aspect: crop it to {_aspect(size)}."
            )
        start = encoder.encode(pad_picture(start, size)[:, :, None])
    return VideoCondition(None if pose is None else encoder.encode(pose), start)


def _aspect(size: tuple[int, int]) -> str:
    """The aspect of a (height, width) in the smallest whole numbers, such as 26:15."""
    common = math.gcd(*size)
    return f"{size[1] // common}:{size[0] // common}"
