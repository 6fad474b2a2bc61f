"""The video VAE: diffusers' `AutoencoderKLWan`, stored under Wan's original names, which ComfyUI reads too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..config import ContextAnyoneConfig
from ..errors import CheckpointError, ShapeError
from ..late_import import host_class
from ..runtime.conv3d import OneDnnConv3d
from ..shapes import frames_mistake
from ..weights.checkpoint import save_safetensors
from ..weights.name_tables import vae_from_diffusers, vae_to_diffusers
from ..weights.naming import VAE
from .loading import fill, on_meta, open_weights

# Keys as diffusers spells them, so that the header's config can be passed to the class.
VAE_KEYS = frozenset(
    {"base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean", "latents_std"}
)
"""Keys of the config in a VAE's header."""


def mini_vae_config() -> dict[str, Any]:
    """Config of the miniature VAE: Wan 2.1's architecture at width 16; keys are `AutoencoderKLWan`'s."""
    return {
        "base_dim": 16,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * 16,
        "latents_std": [1.0] * 16,
    }


def build_vae(config: Mapping[str, Any]) -> Any:
    """A fresh diffusers `AutoencoderKLWan` (random weights) for a config like `mini_vae_config`.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    return host_class("diffusers.models.autoencoders.autoencoder_kl_wan", "AutoencoderKLWan")(**config)


def set_latent_statistics(vae: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Put measured per-channel latent mean and std into the VAE's config, from which `save_vae` writes them."""
    vae.register_to_config(latents_mean=[float(v) for v in mean], latents_std=[float(v) for v in std])


class VideoVAE:
    """Images to normalised latents and back (Wan 2.1, stride 4 x 8 x 8, first frame alone).

    Latents are `(z - latents_mean) / latents_std`, as the transformer uses them.
    On a CPU the convolutions run by oneDNN (`runtime/conv3d.py`), with bf16 weights in channels-last order.

    Args:
        vae: diffusers' `AutoencoderKLWan`.
        config: the transformer's config, whose statistics must be the VAE's; None takes the VAE's own.
        tiled: decode large videos in overlapping tiles of 256 pixels, blended: less memory, nearly the same picture.

    Raises:
        CheckpointError: the VAE's statistics are not the transformer's.
    """

    def __init__(self, vae: Any, config: ContextAnyoneConfig | None = None, *, tiled: bool = False) -> None:
        self.vae, self.tiled = vae, tiled
        mean, std = tuple(vae.config.latents_mean), tuple(vae.config.latents_std)
        if config is not None:
            _check_same("latents_mean", mean, config.latents_mean)
            _check_same("latents_std", std, config.latents_std)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1, 1)
        if self.dtype is torch.bfloat16 and self.device.type == "cpu":
            _channels_last(vae)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.vae.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, in which the convolutions run."""
        dtype: torch.dtype = next(self.vae.parameters()).dtype
        return dtype

    def to(self, device: torch.device | str) -> VideoVAE:
        """Move the weights; returns itself."""
        self.vae.to(device)
        return self

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised latents (B, 16, 1 + (T-1)/4, H/8, W/8), float32, of images (B, 3, T, H, W) in [-1, 1].

        The mode of the posterior, no sampling: the same images always give the same latents.

        Raises:
            ShapeError: T is not 4k + 1, or H or W is no multiple of 8.
        """
        if images.ndim != 5 or images.shape[1] != 3 or 0 in images.shape:
            raise ShapeError(f"images have shape {tuple(images.shape)}; the VAE needs (B, 3, T, H, W).")
        frames, height, width = images.shape[2:]
        if frames_mistake(frames) or height % 8 or width % 8:
            raise ShapeError(
                f"images are {frames} frames of {height} x {width}; the VAE needs 4k + 1 frames, sides multiples of 8."
            )
        with torch.no_grad(), OneDnnConv3d():
            posterior = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
            latents = torch.as_tensor(posterior.mode()).float()
        return (latents - self._mean.to(latents.device)) / self._std.to(latents.device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, 4 (t-1) + 1, 8 h, 8 w) in [-1, 1], float32, of normalised latents (B, 16, t, h, w).

        Raises:
            ShapeError: the latents are not (B, z_dim, t, h, w).
        """
        channels = self._mean.shape[1]
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
            raise ShapeError(f"latents have shape {tuple(latents.shape)}; the VAE needs (B, {channels}, t, h, w).")
        latents = latents.to(self.device, torch.float32)
        raw = latents * self._std.to(latents.device) + self._mean.to(latents.device)
        with torch.no_grad(), OneDnnConv3d(), self._tiles():
            images = torch.as_tensor(self.vae.decode(raw.to(self.dtype)).sample)
        return images.float().clamp_(-1, 1)

    @contextmanager
    def _tiles(self) -> Iterator[None]:
        """Tiled decoding within this context; references are always encoded untiled."""
        if self.tiled:
            self.vae.enable_tiling()
        try:
            yield
        finally:
            if self.tiled:
                self.vae.disable_tiling()


def save_vae(vae: Any, path: Path, extra: dict[str, str] | None = None, *, dtype: torch.dtype = torch.float16) -> None:
    """Write an `AutoencoderKLWan` as one safetensors file under Wan's own names, its config in the header."""
    tensors = vae_from_diffusers({name: value.detach().to(dtype) for name, value in vae.state_dict().items()})
    config = {key: _plain(getattr(vae.config, key)) for key in sorted(VAE_KEYS)}
    save_safetensors(path, tensors, kind=VAE, config=config, extra=extra)


def load_vae(path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """Read a file of `save_vae`, or Wan 2.1's VAE in any public form, as diffusers' `AutoencoderKLWan`.

    Raises:
        CheckpointError: the file is damaged, of another kind, or does not fit its config.
        MissingDependencyError: diffusers is not installed.
    """
    config, tensors = open_weights(path, VAE, VAE_KEYS, dtype)
    named = vae_to_diffusers(tensors)
    vae = on_meta(lambda: build_vae(config))
    return fill(vae, {name: value.to(device=device, dtype=dtype) for name, value in named.items()}, path)


def _channels_last(vae: Any) -> None:
    """Store every Conv3d weight channels-last; the other layers follow the activations' order."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def _check_same(name: str, vae: Sequence[float], transformer: Sequence[float]) -> None:
    if len(vae) != len(transformer) or any(abs(a - b) > 1e-4 for a, b in zip(vae, transformer, strict=False)):
        raise CheckpointError(
            f"{name} of the VAE and of the transformer differ ({vae[:3]} ... and {tuple(transformer[:3])} ...): "
            "the transformer was trained on another VAE's latents. Use the VAE that belongs to it."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
