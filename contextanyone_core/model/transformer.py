"""The ContextAnyone transformer: Wan 2.1's blocks with a reference stream and Emphasize-Attention.

Reference tokens and video tokens share every weight. The reference stream runs first and yields, for every block, the
keys and values that the video attends to; the video stream runs second. So the video never changes a reference, and a
cached reference is the same computation as an uncached one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import ContextAnyoneConfig
from ..errors import InputError, ShapeError
from .attention import AttentionFunction, torch_attention
from .blocks import Head, ImageEmbedding, ReferenceStream, Stream, TransformerBlock
from .condition import PatchEmbedding, VideoCondition, pad_channels, resized_patch_weight
from .initialisation import initialise
from .precision import full_precision
from .references import InContextReferences, ReferenceCache, ReferenceInputs
from .regions import NO_REGIONS
from .rope import reference_table, video_table


class TransformerOutput(NamedTuple):
    """`velocity` (B, out_dim, T, h, w); `reference_output`, one (B, out_dim, 1, h, w) per reference, None without."""

    velocity: Tensor
    reference_output: list[Tensor] | None


class ContextAnyoneTransformer(nn.Module):
    """Predicts the velocity of noisy video latents from text and any number of references.

    Args:
        config: sizes and constants.
        ops: namespace of Linear, Conv3d, LayerNorm and RMSNorm: `torch.nn`, or a host's own layers. Weights are
            initialised only with torch.nn; a host's layers are filled from a file.
        attention: the attention kernel.
        device, dtype: where and in which dtype the weights are made.
    """

    def __init__(
        self,
        config: ContextAnyoneConfig,
        ops: Any = nn,
        attention: AttentionFunction = torch_attention,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        factory = {"device": device, "dtype": dtype}
        dim = config.dim
        patches: Any = PatchEmbedding if ops is nn else ops.Conv3d
        self.patch_embedding = patches(
            config.patch_channels, dim, kernel_size=config.patch_size, stride=config.patch_size, **factory
        )
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim, **factory), nn.GELU(approximate="tanh"), ops.Linear(dim, dim, **factory)
        )
        self.time_embedding = nn.Sequential(
            ops.Linear(config.freq_dim, dim, **factory), nn.SiLU(), ops.Linear(dim, dim, **factory)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim, **factory))
        self.img_emb: ImageEmbedding | None = None
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim, ops, **factory)
        self.blocks = nn.ModuleList(TransformerBlock(config, ops, **factory) for _ in range(config.num_layers))
        self.head = Head(config, ops, **factory)
        if ops is nn and not self.head.modulation.is_meta:
            initialise(self)

    @property
    def patch_channels(self) -> int:
        """Channels of the patch embedding; a host may add some to a loaded model."""
        return self.config.patch_channels

    def add_condition_channels(self) -> None:
        """Give the patch embedding inputs for pose and start frame, zero at first; nothing where it has them."""
        self.config = replace(self.config, condition_dim=2 * self.config.in_dim)
        patches = self.patch_embedding
        wide = resized_patch_weight(patches.weight.detach(), self.config.patch_channels)
        patches.weight = nn.Parameter(wide, requires_grad=patches.weight.requires_grad)
        patches.in_channels = self.config.patch_channels

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        *,
        references: ReferenceInputs | InContextReferences | None = None,
        cache: ReferenceCache | None = None,
        emphasis: float = 1.0,
        condition: VideoCondition | None = None,
        attention: AttentionFunction | None = None,
    ) -> TransformerOutput:
        """Velocity (noise - clean) of the video and, with `references`, the reference stream's own output.

        Args:
            latents: (B, in_dim, T, h, w), normalised, in the dtype of the weights (float32 under autocast).
            timesteps: (B,), 1000 * sigma.
            text_embeds: (B, text_len, text_dim), zero-padded; the video's prompt.
            references: `ReferenceInputs`, whose stream runs in this call; `InContextReferences` join the video's.
            cache: the result of `encode_references`, instead of `references`. With neither there are no reference
                tokens, no CLIP tokens and no Emphasize-Attention.
            emphasis: factor of Emphasize-Attention; 1 as trained, 0 is the block without it.
            condition: pose, clean first frames and regions, for the video stream only.
            attention: another kernel for this call only.

        Raises:
            ShapeError: a tensor does not fit the config, or has another batch (of a cache or condition, 1 is fine).
            InputError: both `references` and `cache` are given, or a condition to a model without its channels, or
                regions together with in-context references.
        """
        if references is not None and cache is not None:
            raise InputError("Both references and their cache are given; give one of the two.")
        attention = attention or self.attention
        self._check_latents("latents", latents)
        self._check_text(text_embeds)
        _check_batch("text_embeds", text_embeds, len(latents))
        _check_timesteps(timesteps, len(latents))
        condition = condition or VideoCondition()
        conditioned = condition.concatenated(latents, self.patch_channels)
        if isinstance(references, InContextReferences):
            if condition.regions is not None:
                raise InputError(NO_REGIONS)
            return self._in_context(conditioned, timesteps, text_embeds, references, attention)
        stream, time_embeds = self._video_stream(latents, timesteps, text_embeds, condition)
        outputs: list[Tensor] | None = None
        if references is None:
            x = self._run_video(conditioned, stream, cache, emphasis, attention)  # b (t h w) c
        else:
            x, outputs = self._run_both(conditioned, stream, references, emphasis, attention)
        velocity = self._unpatch(self.head(x, time_embeds), self._grid(latents))  # b c t h w
        return TransformerOutput(velocity, outputs)

    def _run_video(
        self,
        video: Tensor,
        stream: Stream,
        cache: ReferenceCache | None,
        emphasis: float,
        attention: AttentionFunction,
    ) -> Tensor:
        """Tokens (B, tokens, C) of the video (B, patch_channels or in_dim, T, h, w) after all blocks."""
        if cache is not None:
            _check_batch("references", cache.blocks[0].self_attn.keys, len(video), or_one=True)
        x = self._embed_patches(video)
        for index, block in enumerate(self.blocks):
            x = block(x, stream, None if cache is None else cache.blocks[index], emphasis, attention)
        return x

    def _run_both(
        self,
        video: Tensor,
        stream: Stream,
        references: ReferenceInputs,
        emphasis: float,
        attention: AttentionFunction,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `_run_video`, with the references in the same pass; also returns the reference stream's own output.

        Block by block, first the references, then the video: the weights of a block are used once for both.
        """
        reference, reference_time = self._embed_references(references)
        _check_batch("references", reference.tokens, len(video), or_one=True)
        x = self._embed_patches(video)
        for block in self.blocks:
            x, tokens = block(x, stream, reference, emphasis, attention, mode="both")
            reference = reference._replace(tokens=tokens)
        return x, self._reference_outputs(references, reference.tokens, reference_time)

    def _video_stream(
        self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, condition: VideoCondition
    ) -> tuple[Stream, Tensor]:
        """The video stream without its tokens, and its embedded timesteps (B, C)."""
        grid, config = self._grid(latents), self.config
        time_embeds, modulation = self._embed_time(timesteps, latents)
        table = video_table((grid,), config.head_dim, latents.device)
        guide = condition.guide(latents, config.patch_size, config.text_len)
        textless = condition.textless_frames * math.prod(grid[1:])
        text = self.text_embedding(text_embeds)
        return Stream(modulation, text, table, (math.prod(grid),), guide, textless), time_embeds

    def encode_references(
        self, references: ReferenceInputs, *, attention: AttentionFunction | None = None
    ) -> ReferenceCache:
        """Run the reference stream once and cache the keys and values that the video attends to in every step.

        Raises:
            ShapeError: a tensor does not fit the config, or batch sizes differ.
        """
        own, time_embeds = self._embed_references(references)
        x, blocks = own.tokens, []
        for block in self.blocks:
            x, kept = block(x, own.stream, own.image, attention or self.attention, mode="reference")
            blocks.append(kept)
        return ReferenceCache(blocks, self._reference_outputs(references, x, time_embeds))

    def _in_context(
        self,
        video: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        references: InContextReferences,
        attention: AttentionFunction,
    ) -> TransformerOutput:
        """Velocity of the video (B, patch_channels or in_dim, T, h, w), with the references' tokens after its own."""
        inputs = [video]
        for item in references.latents:
            self._check_latents("reference_latents", item)
            _check_batch("reference_latents", item, len(video), or_one=True)
            inputs.append(item.to(video).expand(len(video), -1, -1, -1, -1))
        grids = tuple(self._grid(item) for item in inputs)
        lengths = [math.prod(grid) for grid in grids]
        time_embeds, modulation = self._embed_time(timesteps, video)
        table = video_table(grids, self.config.head_dim, video.device)
        stream = Stream(modulation, self.text_embedding(text_embeds), table, (sum(lengths),))
        x = torch.cat([self._embed_patches(item) for item in inputs], dim=1)  # b (video, references) c
        for block in self.blocks:
            x = block(x, stream, None, 1.0, attention)
        velocity = self._unpatch(self.head(x[:, : lengths[0]], time_embeds), grids[0])  # b c t h w
        return TransformerOutput(velocity, None)

    def _embed_references(self, references: ReferenceInputs) -> tuple[ReferenceStream, Tensor]:
        """The reference stream before the first block, and its embedded timesteps (B, C)."""
        self._check_references(references)
        latents, first = references.latents, references.latents[0]
        grids = [self._grid(item) for item in latents]
        timesteps = references.timesteps
        if timesteps is None:
            timesteps = torch.zeros(first.shape[0], device=first.device)
        time_embeds, modulation = self._embed_time(timesteps, first)
        gap = self.config.gap if references.gap is None else references.gap
        table = reference_table(tuple(grids), gap, self.config.head_dim, first.device)
        lengths = [math.prod(grid) for grid in grids]
        stream = Stream(modulation, self.text_embedding(references.text_embeds), table, lengths)
        image = None
        if references.image_embeds and self.img_emb is not None:
            image = self.img_emb(torch.cat(references.image_embeds, dim=1))  # b (r n) c
        x = torch.cat([self._embed_patches(item) for item in latents], dim=1)  # b (r h w) c
        return ReferenceStream(x, stream, image), time_embeds

    def _reference_outputs(self, references: ReferenceInputs, x: Tensor, time_embeds: Tensor) -> list[Tensor]:
        """The head's output of the reference tokens after the last block: (B, out_dim, 1, h, w) per reference."""
        grids = [self._grid(item) for item in references.latents]
        patches = self.head(x, time_embeds).split([math.prod(grid) for grid in grids], dim=1)
        return [self._unpatch(part, grid) for part, grid in zip(patches, grids, strict=True)]

    def _embed_time(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded timesteps (B, C) in the dtype of `like`, and the blocks' modulation (B, 6, C) in float32."""
        with full_precision(like.device):
            waves = _sinusoids(timesteps.to(like.device), self.config.freq_dim)
            time_embeds = self.time_embedding(waves.to(like.dtype))
            modulation: Tensor = self.time_projection(time_embeds)
            return time_embeds, modulation.float().view(-1, 6, self.config.dim)

    def _embed_patches(self, latents: Tensor) -> Tensor:
        """Tokens (B, t h w, C) of latents (B, channels, T, H, W)."""
        if not isinstance(self.patch_embedding, PatchEmbedding):
            latents = pad_channels(latents, self.patch_channels)
        with full_precision(latents.device):  # the residual stream stays in the latents' dtype
            patches: Tensor = self.patch_embedding(latents)
        return rearrange(patches, "b c t h w -> b (t h w) c").contiguous()

    def _unpatch(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        (t, h, w), (i, j, k) = grid, self.config.patch_size
        return rearrange(patches, "b (t h w) (i j k c) -> b c (t i) (h j) (w k)", t=t, h=h, w=w, i=i, j=j, k=k)

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of latents."""
        patch = self.config.patch_size
        return (latents.shape[2] // patch[0], latents.shape[3] // patch[1], latents.shape[4] // patch[2])

    def _check_latents(self, name: str, latents: Tensor) -> None:
        config = self.config
        fits = latents.ndim == 5 and latents.shape[1] == config.in_dim
        if not fits or any(size % patch for size, patch in zip(latents.shape[2:], config.patch_size, strict=True)):
            raise ShapeError(
                f"{name} have shape {tuple(latents.shape)}; needed is (batch, {config.in_dim}, T, h, w) with T, h, w "
                f"multiples of {config.patch_size}."
            )

    def _check_text(self, text_embeds: Tensor) -> None:
        config = self.config
        if text_embeds.ndim != 3 or tuple(text_embeds.shape[1:]) != (config.text_len, config.text_dim):
            raise ShapeError(
                f"text_embeds have shape {tuple(text_embeds.shape)}; needed is (batch, {config.text_len}, "
                f"{config.text_dim}), padded with zeros."
            )

    def _check_references(self, references: ReferenceInputs) -> None:
        if not references.latents:
            raise ShapeError("There is no reference in references.latents; leave references out to run without one.")
        batch = len(references.latents[0])
        for latents in references.latents:
            self._check_latents("reference_latents", latents)
            _check_batch("reference_latents", latents, batch)
            if latents.shape[2] != 1:
                raise ShapeError(
                    f"A reference has {latents.shape[2]} latent frames; each must be one picture, 1 frame."
                )
        self._check_text(references.text_embeds)
        _check_batch("text_embeds of the references", references.text_embeds, batch)
        if references.timesteps is not None:
            _check_timesteps(references.timesteps, batch)
        for tokens in references.image_embeds:
            if tokens.ndim != 3 or tokens.shape[2] != self.config.image_dim:
                raise ShapeError(
                    f"image_embeds have shape {tuple(tokens.shape)}; this model needs (batch, N, "
                    f"{self.config.image_dim})."
                    if self.config.image_dim
                    else "image_embeds are given, and this model has no CLIP branch; leave them out."
                )
            _check_batch("image_embeds", tokens, batch)


def _check_batch(name: str, given: Tensor, batch: int, *, or_one: bool = False) -> None:
    if len(given) != batch and not (or_one and len(given) == 1):
        raise ShapeError(f"{name} are a batch of {len(given)}, the latents a batch of {batch}; one size is needed.")


def _check_timesteps(timesteps: Tensor, batch: int) -> None:
    if tuple(timesteps.shape) != (batch,):
        raise ShapeError(f"timesteps have shape {tuple(timesteps.shape)}; needed is ({batch},), one for each sample.")


def _sinusoids(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of timesteps (B,) at width / 2 frequencies from 1 to 1 / 10000: float32 (B, width)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
