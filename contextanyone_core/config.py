"""The configuration of a model: one frozen dataclass, stored as JSON in every checkpoint's header."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from .errors import InputError, did_you_mean

# Per-channel statistics of the latents of Wan 2.1's VAE (its published config).
WAN_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

POSE_STYLES = ("full", "miniature")


@dataclass(frozen=True, kw_only=True)
class ContextAnyoneConfig:
    """Sizes and constants of a ContextAnyone model (the first block of fields is Wan 2.1's).

    Attributes:
        dim, ffn_dim, num_heads, num_layers: width, feed-forward width, attention heads and blocks of the transformer.
        in_dim, out_dim: latent channels in and out.
        condition_dim: channels that the patch embedding takes beside them: 0, or 2 * in_dim for pose | start, as
            Wan2.1-Fun-Control.
        pose_style: how poses are drawn for it: full (on black, as Wan2.1-Fun-Control) or miniature (thinner, on grey).
        freq_dim: width of the sinusoidal time embedding.
        text_dim, text_len: width and fixed length of the text embeddings.
        image_dim: width of the CLIP tokens; None is a model without the CLIP branch.
        patch_size: latent frames, rows and columns per token.
        eps: epsilon of the norms inside the blocks.
        emphasize: whether the blocks have Emphasize-Attention.
        gap: temporal distance between references and video, in latent frames (Gap-RoPE).
        shift: default shift of the sampling schedule.
        cfg_scale: default guidance_scale of `cfg` guidance.
        dual_scales: default guidance_scale and reference_scale of `dual` guidance.
        projected_guidance: whether `dual` guidance projects its differences, as Bernini's.
        vae_stride: pixels per latent in time, height and width.
        latents_mean, latents_std: the transformer's latents are (z - mean) / std of the VAE's latents z.
        latent_rgb_factors, latent_rgb_bias: linear preview, rgb = normalised latent @ factors + bias, in [-1, 1]; None
            if no projection was fitted (ComfyUI has its own for Wan's VAE).

    Raises:
        InputError: a size is invalid for a transformer.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_dim: int
    text_len: int
    image_dim: int | None
    in_dim: int = 16
    out_dim: int = 16
    condition_dim: int = 0
    pose_style: str = "full"
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    emphasize: bool = True
    gap: float = 10.0  # Paper: the size of the gap is not stated; 10 latent frames is this project's choice.
    shift: float = 5.0
    cfg_scale: float = 5.0
    dual_scales: tuple[float, float] = (7.5, 5.0)  # Paper: guidance is not stated; these are Wan's and Phantom's.
    projected_guidance: bool = False
    vae_stride: tuple[int, int, int] = (4, 8, 8)
    latents_mean: tuple[float, ...] = (0.0,) * 16
    latents_std: tuple[float, ...] = (1.0,) * 16
    latent_rgb_factors: tuple[tuple[float, float, float], ...] | None = None
    latent_rgb_bias: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len", "in_dim", "out_dim", "freq_dim")
        for name in sizes + (("image_dim",) if self.image_dim is not None else ()):
            _require_positive_int(name, getattr(self, name))
        for name in ("patch_size", "vae_stride"):
            _require_length(name, getattr(self, name), 3)
            for value in getattr(self, name):
                _require_positive_int(name, value)
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise InputError(
                f"dim is {self.dim} with {self.num_heads} heads; dim / num_heads must be an even number of at least 6."
            )
        if isinstance(self.condition_dim, bool) or self.condition_dim not in (0, 2 * self.in_dim):
            raise InputError(
                f"condition_dim is {self.condition_dim!r}; it must be 0, or {2 * self.in_dim} (pose and start frame)."
            )
        if self.pose_style not in POSE_STYLES:
            raise InputError(f"pose_style is {self.pose_style!r}; it must be {' or '.join(POSE_STYLES)}.")
        if self.freq_dim % 2:
            raise InputError(f"freq_dim is {self.freq_dim}; it must be even (half sines, half cosines).")
        for name in ("eps", "shift"):
            _require_finite(name, [getattr(self, name)], positive=True)
        _require_finite("gap", [self.gap])
        _require_length("dual_scales", self.dual_scales, 2)
        for name, values in (("cfg_scale", (self.cfg_scale,)), ("dual_scales", self.dual_scales)):
            _require_finite(name, values, positive=True)
        self._check_latents()

    def _check_latents(self) -> None:
        for name in ("latents_mean", "latents_std"):
            _require_length(name, getattr(self, name), self.in_dim)
            _require_finite(name, getattr(self, name), positive=name == "latents_std")
        if (self.latent_rgb_factors is None) != (self.latent_rgb_bias is None):
            raise InputError("latent_rgb_factors and latent_rgb_bias belong together: give both or neither.")
        if self.latent_rgb_factors is not None and self.latent_rgb_bias is not None:
            _require_length("latent_rgb_factors", self.latent_rgb_factors, self.in_dim)
            for row in (*self.latent_rgb_factors, self.latent_rgb_bias):
                _require_length("a row of latent_rgb_factors", row, 3)
                _require_finite("latent_rgb_factors", row)

    @property
    def patch_channels(self) -> int:
        """Channels of the patch embedding: noisy latents and conditions."""
        return self.in_dim + self.condition_dim

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values (tuples become lists)."""
        return {field.name: _to_lists(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InputError: a key is unknown (the message suggests the nearest known one) or missing, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"Unknown key {key!r} in a model config.{did_you_mean(key, known)}")
        try:
            return cls(**{key: _to_tuples(value) for key, value in values.items()})
        except TypeError as error:
            raise InputError(f"Not a model config: {error}.") from error

    @classmethod
    def wan_1_3b(cls) -> Self:
        """Wan 2.1 T2V 1.3B with CLIP ViT-H/14 tokens and Emphasize-Attention."""
        return cls(
            dim=1536,
            ffn_dim=8960,
            num_heads=12,
            num_layers=30,
            text_dim=4096,
            text_len=512,
            image_dim=1280,
            latents_mean=WAN_LATENTS_MEAN,
            latents_std=WAN_LATENTS_STD,
        )

    @classmethod
    def wan_14b(cls) -> Self:
        """Wan 2.1 T2V 14B with CLIP ViT-H/14 tokens and Emphasize-Attention."""
        return replace(cls.wan_1_3b(), dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

    @classmethod
    def miniature(cls) -> Self:
        """The size of the shipped miniature, with default latent statistics."""
        return cls(
            dim=256,
            ffn_dim=1024,
            num_heads=4,
            num_layers=8,
            text_dim=128,
            text_len=128,
            image_dim=128,
            pose_style="miniature",
            shift=3.0,
            cfg_scale=3.0,
            dual_scales=(3.0, 3.0),
        )

    @classmethod
    def tiny(cls) -> Self:
        """The smallest model with all components, for tests."""
        return cls(
            dim=48,
            ffn_dim=96,
            num_heads=2,
            num_layers=2,
            text_dim=32,
            text_len=12,
            image_dim=24,
            pose_style="miniature",
            freq_dim=32,
            shift=3.0,
        )


def _require_positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1.")


def _require_finite(name: str, values: Iterable[object], *, positive: bool = False) -> None:
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (positive and not value > 0):  # type: ignore[operator]
            raise InputError(f"{name} is {value!r}; it must be a finite {'positive ' if positive else ''}number.")


def _require_length(name: str, values: object, length: int) -> None:
    if not isinstance(values, tuple) or len(values) != length:
        raise InputError(f"{name} is {values!r}; it must hold {length} values.")


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list | tuple) else value
