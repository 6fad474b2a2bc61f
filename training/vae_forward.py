"""The Wan VAE over a whole clip at once, for training.

diffusers' `AutoencoderKLWan` walks a clip in chunks with a feature cache, and its `decode` clamps, which kills
gradients. The same function of the same weights is computed here on all frames together: every convolution is causal
with zeros in front, the temporal downsampling leaves the first frame alone and the temporal upsampling repeats nothing
for it. A test holds the two equal. Single frames take 2D convolutions with the kernels' last temporal tap, which is
exact (the other taps see the zeros in front) and several times faster; one clip on a CPU takes oneDNN's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from torch import Tensor, nn

from contextanyone_core.runtime.conv3d import conv3d

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, ...), gain (C, 1, ...)) to RMS norm over channels times gain, through SiLU."""


def encode_whole(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (B, z, 1 + (T-1)/4, H/8, W/8) of the posterior for images (B, 3, T, H, W)."""
    encoder = vae.encoder
    x = _conv(encoder.conv_in, images)
    for layer in encoder.down_blocks:
        x = _downsample(layer, x) if hasattr(layer, "resample") else _residual(layer, x)
    x = _middle(encoder.mid_block, x)
    x = _conv(encoder.conv_out, _activated(encoder.norm_out, x))
    mean, logvar = _conv(vae.quant_conv, x).chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def decode_whole(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, 4(t-1)+1, 8h, 8w), not clamped, for latents (B, z, t, h, w)."""
    decoder = vae.decoder
    x = _conv(decoder.conv_in, _conv(vae.post_quant_conv, latents))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.upsamplers is not None:
            x = _upsample(block.upsamplers[0], x)
    return _conv(decoder.conv_out, _activated(decoder.norm_out, x))


def _conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    side = conv.kernel_size[1] // 2
    if x.shape[2] == 1:
        return F.conv2d(x.squeeze(2), conv.weight[:, :, -1], conv.bias, padding=side).unsqueeze(2)
    if conv.kernel_size[0] > 1:
        front = conv.kernel_size[0] - 1
        x = torch.cat([x.new_zeros((*x.shape[:2], front, *x.shape[3:])), x], dim=2)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return conv3d(x, conv.weight, conv.bias, padding=(0, side, side))


def compile_norms(vae: Any) -> None:
    """Make one kernel of each norm and its activation, forward and backward: on a CPU 1.5 times the steps a second."""
    torch._dynamo.config.recompile_limit = 64  # a kernel for each shape, with and without gradients
    kernel = torch.compile(_rms_silu, dynamic=False)
    for module in vae.modules():
        if isinstance(module, WanRMS_norm):
            module.kernel = kernel


def _activated(norm: Any, x: Tensor) -> Tensor:
    """RMS norm over channels, then SiLU."""
    kernel: Kernel = getattr(norm, "kernel", _rms_silu)
    return kernel(x, norm.gamma * norm.scale)


def _rms_silu(x: Tensor, gain: Tensor) -> Tensor:
    scale = torch.rsqrt(x.square().sum(dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-24)).to(x.dtype)
    return F.silu(x * scale * gain.to(x.dtype))


def _residual(block: Any, x: Tensor) -> Tensor:
    shortcut = block.conv_shortcut
    h = x if isinstance(shortcut, nn.Identity) else _conv(shortcut, x)
    x = _conv(block.conv1, _activated(block.norm1, x))
    return _conv(block.conv2, _activated(block.norm2, x)) + h


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    return _residual(block.resnets[1], block.attentions[0](x))


def _frames(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _clip(x: Tensor, batch: int) -> Tensor:
    return x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)


def _downsample(layer: Any, x: Tensor) -> Tensor:
    down = _clip(layer.resample(_frames(x)), x.shape[0])
    if layer.mode == "downsample2d" or down.shape[2] == 1:
        return down
    time = layer.time_conv
    later = conv3d(down, time.weight, time.bias, stride=time.stride)
    return torch.cat([down[:, :, :1], later], dim=2)


def _upsample(layer: Any, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        first, later = x[:, :, :1], x[:, :, 1:]
        time = layer.time_conv
        padded = torch.cat([torch.zeros_like(later[:, :, :1]).expand(-1, -1, 2, -1, -1), later], dim=2)
        pairs = conv3d(padded, time.weight, time.bias)
        later = torch.stack(pairs.chunk(2, dim=1), dim=3).flatten(2, 3)
        x = torch.cat([first, later], dim=2)
    frames = F.interpolate(_frames(x), scale_factor=2.0, mode="nearest-exact")
    conv = layer.resample[1]
    return _clip(F.conv2d(frames, conv.weight, conv.bias, padding=1), x.shape[0])
