"""The mini VAE: Wan 2.1's architecture at width 16, trained on renderings of the character world.

Images come first: single frames take the cheap 2D form of every convolution (see `vae_forward`). Clips follow, on
crops around the person, with single frames in between so that first frames stay sharp.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from contextanyone_core.encoders.vae import (
    VideoVAE,
    build_vae,
    load_vae,
    mini_vae_config,
    save_vae,
    set_latent_statistics,
)
from contextanyone_core.errors import InputError
from contextanyone_core.weights.container import open_container
from training.data.buckets import FrameCount
from training.files import write_png
from training.parts.base import Metrics, ParameterGroup, PartContext, PartSettings, default_groups
from training.randomness import numpy_generator, seed_for
from training.vae_forward import compile_norms, decode_whole, encode_whole
from training.world import TEST_SEED_START, random_frame, sample

_LOG = logging.getLogger(__name__)
_RENDER_SIZE = (128, 128)
_STATISTICS_CLIPS = 48  # 48 clips of 5 x 16 x 16 latents: 61,440 latents of 16 channels
_FAMILIAR_PICTURES = 64
_NUMBERED = 64


class Settings(PartSettings):
    """What the VAE trains on, in which order, and the weights of its loss."""

    name: Literal["vae"] = "vae"
    image_steps: int = Field(2500, ge=0)  # steps before the first clip
    image_batch: int = Field(24, ge=2, multiple_of=2)  # even: a rendering and its reference come in pairs
    image_every: int = Field(4, ge=2)  # once clips have begun, every n-th step is one of images
    clip_batch: int = Field(4, ge=1)
    clip_frames: FrameCount = Field(9, ge=5)
    crop: int = Field(64, ge=16, le=128, multiple_of=8)
    full_every: int = Field(5, ge=2)  # every n-th image step sees whole pictures instead of crops
    l1_weight: float = Field(0.3, ge=0)
    kl_weight: float = Field(3e-5, ge=0)
    motion_weight: float = Field(0.0, ge=0)  # a pixel that jumps from black to white counts 1 + this, a still one 1
    train_encoder: bool = True  # False: only the decoder is trained, the latents do not change
    keep_stills: float = Field(0.0, ge=0)  # weight of how far first frames' latents move from those of `init.from`
    compile: bool = False  # torch.compile of norms and activations; for the C++ compiler, see docs/MINIATURE.md


class VaePart:
    """Trains `AutoencoderKLWan` through `encode_whole` and `decode_whole`, the unclamped whole-clip forward."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings, self.context = settings, context
        self.vae = load_vae(context.init_from) if context.init_from else still_start(build_vae(mini_vae_config()))
        self.before: Any = self._kept() if settings.keep_stills else None
        self.vae.requires_grad_(settings.train_encoder)
        self.vae.decoder.requires_grad_(True)
        self.vae.post_quant_conv.requires_grad_(True)
        for module in self.vae.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        if settings.compile:
            compile_norms(self.vae)

    def _kept(self) -> Any:
        """The unchanged VAE of `init.from`, whose latents of stills are the target."""
        if self.context.init_from is None:
            raise InputError("part.keep_stills needs init.from: without it there are no latents to preserve.")
        return load_vae(self.context.init_from).requires_grad_(False).to(self.context.device)

    def modules(self) -> dict[str, nn.Module]:
        """The VAE."""
        return {"vae": self.vae}

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of it, or the decoder alone."""
        if self.settings.train_encoder:
            return default_groups(self.modules(), hidden=_is_hidden)
        parts = {"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv}
        return default_groups(parts, hidden=_is_hidden)

    def batch(self, step: int) -> Any:
        """Crops of images or clips, uint8 (B, T, h, w, 3)."""
        settings, rng = self.settings, numpy_generator(self.context.own_seed, step, "vae crops")
        at = self.context.step_of(step)
        images = at < settings.image_steps or at % settings.image_every == 0
        count = settings.image_batch // 2 if images else settings.clip_batch
        seeds = [_world_seed(self.context.own_seed, step, index) for index in range(count)]
        if not images:
            clips = [sample(seed, settings.clip_frames, _RENDER_SIZE) for seed in seeds]
            return _stacked([_crop(clip.video, clip.masks, settings.crop, rng) for clip in clips])
        pairs = [random_frame(seed, _RENDER_SIZE) for seed in seeds]
        turn = at if at < settings.image_steps else at // settings.image_every
        if turn % settings.full_every == 0:
            return _stacked([pair.video for pair in pairs[: max(1, count // 2)]])
        crops = [_crop(pair.video, pair.masks, settings.crop, rng) for pair in pairs]
        crops += [_crop(pair.reference[None], pair.reference_mask[None], settings.crop, rng) for pair in pairs]
        return _stacked(crops)

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared and absolute error of the reconstruction, and a little KL; the posterior is sampled."""
        images = _to_images(batch, self.context.device)
        mean, logvar = encode_whole(self.vae, images)
        mean, logvar = mean.float(), logvar.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        error = decode_whole(self.vae, mean + noise * torch.exp(0.5 * logvar)).float() - images
        weights = 1.0 + self.settings.motion_weight * _change(images)
        squared = (weights * error.square()).flatten(1).mean(1)
        absolute = (weights * error.abs()).flatten(1).mean(1)
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).mean(1)
        loss = squared + self.settings.l1_weight * absolute + self.settings.kl_weight * kl
        psnr = -10.0 * torch.log10(error.detach().square().flatten(1).mean(1) / 4.0)
        kind = "image" if images.shape[2] == 1 else "clip"
        metrics: Metrics = {f"psnr_{kind}": psnr, "kl": kl.detach()}
        if self.before is not None:
            moved = self._moved(images, mean)
            loss, metrics["moved"] = loss + self.settings.keep_stills * moved, moved.detach()
        return loss, metrics

    def _moved(self, images: Tensor, mean: Tensor) -> Tensor:
        """Squared distance (B,) of first frames' latents from those of `init.from`, in its standard deviations."""
        with torch.no_grad():
            before = encode_whole(self.before, images[:, :, :1])[0].float()
        std = torch.tensor(self.before.config.latents_std, device=before.device).view(-1, 1, 1, 1)
        return ((mean[:, :, :1] - before) / std).square().flatten(1).mean(1)

    def sample(self, step: int, folder: Path) -> None:
        """Three test clips above their reconstructions, every fourth frame; logs their mean PSNR."""
        truth = np.stack([sample(TEST_SEED_START + i).video for i in range(3)])
        images = _to_images(truth, self.context.device)
        with torch.compiler.set_stance("force_eager"):  # other shapes than in training: not worth a compilation
            decoded = decode_whole(self.vae, encode_whole(self.vae, images)[0]).float().clamp(-1, 1)
        psnr = -10.0 * torch.log10((decoded - images).square().mean((1, 2, 3, 4)) / 4.0)
        _LOG.info("step %d: test clips at %s dB", step, ", ".join(f"{value:.2f}" for value in psnr.tolist()))
        pixels = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
        rows = [_row(video) for pair in zip(truth, pixels, strict=True) for video in pair]
        write_png(folder / f"{step:06d}.png", np.concatenate(rows))

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Measure the latents' statistics and preview projection, and write vae.safetensors."""
        extra = self._latent_facts() | {"record": json.dumps(dict(record))}
        half = build_vae(dict(self.vae.config)).half()
        half.load_state_dict(self.vae.state_dict())
        threshold = self._familiar_psnr(half)
        save_vae(half, folder / "vae.safetensors", {**extra, "familiar_psnr": f"{threshold:.2f}"})

    def _latent_facts(self) -> dict[str, str]:
        """Set the latents' mean and std, return the preview projection.

        Where latents are kept, mean and std stay, and the file's projection too; a public file has none.
        """
        kept = not self.settings.train_encoder or self.settings.keep_stills > 0
        start = self.context.init_from if kept else None
        known = {} if start is None else open_container(start).metadata
        if "latent_rgb_factors" in known:
            return {name: known[name] for name in ("latent_rgb_factors", "latent_rgb_bias")}
        latents, colors = self._latents_and_colors()
        flat = latents.flatten(0, 1)
        if start is None:
            set_latent_statistics(self.vae, flat.mean(0).tolist(), flat.std(0).tolist())
        mean, std = (torch.tensor(getattr(self.vae.config, f"latents_{name}")) for name in ("mean", "std"))
        normalised = (flat - mean) / std
        design = torch.cat([normalised, torch.ones(len(flat), 1)], dim=1)
        solution = torch.linalg.lstsq(design, colors.flatten(0, 1)).solution
        return {
            "latent_rgb_factors": json.dumps(solution[:-1].tolist()),
            "latent_rgb_bias": json.dumps(solution[-1].tolist()),
        }

    def _latents_and_colors(self) -> tuple[Tensor, Tensor]:
        """Latents (N, L, 16), and the mean colour in [-1, 1] of the pixels each stands for (N, L, 3)."""
        latents, colors = [], []
        for i in range(_STATISTICS_CLIPS):
            images = _to_images(sample(i).video[None], self.context.device)
            mean = encode_whole(self.vae, images)[0].float()
            grid = nn.functional.avg_pool3d(images[:, :, ::4], (1, 8, 8))
            latents.append(mean.flatten(2).transpose(1, 2).cpu())
            colors.append(grid.flatten(2).transpose(1, 2).cpu())
        return torch.cat(latents), torch.cat(colors)

    def _familiar_psnr(self, half: nn.Module) -> float:
        """Mean round-trip PSNR of test pictures less four standard deviations: pictures below are out of domain."""
        coder = VideoVAE(build_vae(dict(self.vae.config)))
        coder.vae.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        values = []
        for i in range(_FAMILIAR_PICTURES):
            images = _to_images(sample(TEST_SEED_START + i, 1).reference[None, None], torch.device("cpu"))
            error = coder.decode(coder.encode(images)) - images
            values.append(float(-10.0 * torch.log10(error.square().mean() / 4.0)))
        return float(np.mean(values) - 4.0 * np.std(values))


@torch.no_grad()
def still_start(vae: Any) -> Any:
    """Let a fresh VAE treat a clip as stills, so that clips continue what images have taught.

    Single frames train the last temporal tap of each kernel only. The others start at zero, the temporal downsampling
    hands on the last of its frames, and the temporal upsampling repeats its input.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv3d) or module.kernel_size[0] == 1:
            continue
        if name.endswith("time_conv"):
            width = module.in_channels
            module.weight.zero_()
            module.weight[:, :, -1, 0, 0] = torch.eye(width).repeat(module.out_channels // width, 1)
            if module.bias is not None:
                module.bias.zero_()
        else:
            module.weight[:, :, :-1] = 0
    return vae


def _world_seed(seed: int, step: int, index: int) -> int:
    """Of one picture or clip of a step. The first 64 are numbered through all steps, further ones by step."""
    if index < _NUMBERED:
        return seed_for(seed, step * _NUMBERED + index, "vae data") % TEST_SEED_START
    return seed_for(seed, step, f"vae data {index}") % TEST_SEED_START


def _is_hidden(name: str) -> bool:
    """Kernels between the outermost convolutions (norms' gains have dimensions too, and are no matrices)."""
    return name.endswith("weight") and not any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def _to_images(pixels: Any, device: torch.device) -> Tensor:
    """(B, T, H, W, 3) uint8 to (B, 3, T, H, W) in [-1, 1], channels last."""
    tensor = torch.as_tensor(pixels).to(device)
    images = tensor.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
    return images.contiguous(memory_format=torch.channels_last_3d)


def _change(images: Tensor) -> Tensor:
    """How much each pixel differs from the frame before or after, the larger, in [0, 1]: (B, 1, T, H, W)."""
    step = (images[:, :, 1:] - images[:, :, :-1]).abs().amax(1, keepdim=True) / 2
    change = images.new_zeros(images[:, :1].shape)
    change[:, :, 1:] = step
    change[:, :, :-1] = torch.maximum(change[:, :, :-1], step)
    return change


def _crop(video: NDArray[np.uint8], masks: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square crop, seven times in ten around a random point of the person."""
    height, width = masks.shape[1:]
    rows, columns = np.nonzero(masks[0] > 127)
    if len(rows) and rng.random() < 0.7:
        pick = int(rng.integers(len(rows)))
        center = (int(rows[pick]), int(columns[pick]))
    else:
        center = (int(rng.integers(height)), int(rng.integers(width)))
    top = int(np.clip(center[0] - rng.integers(side), 0, height - side))
    left = int(np.clip(center[1] - rng.integers(side), 0, width - side))
    return np.ascontiguousarray(video[:, top : top + side, left : left + side])


def _row(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate(list(video[::4]), axis=1)


def _stacked(videos: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(videos))
