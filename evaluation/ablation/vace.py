"""VACE's way, trained from nothing: context blocks beside every second block, the reference a first frame of the video.

VACE (arXiv 2503.07598) generates the reference's place together with the video and drops it; a branch of copied blocks
reads the context (the clean reference before nothing, and where to generate) and adds its output, through a layer that
starts at zero, to the blocks of the network. Two simplifications that change no function class: the latents of the grey
clip that VACE encodes where nothing is given are the same for every sample and left out, and its 64 mask channels,
which are equal here, are one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from contextanyone_core.model.attention import AttentionFunction
from contextanyone_core.model.blocks import Stream
from contextanyone_core.model.rope import video_table
from contextanyone_core.model.transformer import ContextAnyoneTransformer, TransformerOutput
from contextanyone_core.weights.checkpoint import load_tensors, save_safetensors
from training.parts.objective import EncodedClips

_EVERY = 2  # a context block beside every second block, as in VACE-1.3B
_KIND = "ablation-context"


class ContextBranch(nn.Module):
    """The context blocks of a network, copied from its own; without effect at first."""

    def __init__(self, network: ContextAnyoneTransformer) -> None:
        super().__init__()
        config = network.config
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim + 1, dim, kernel_size=patch, stride=patch)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for block in network.blocks[::_EVERY])
        self.before = nn.Linear(dim, dim)
        self.after = nn.ModuleList(nn.Linear(dim, dim) for _ in self.blocks)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for layer in (self.before, *self.after):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def hints(self, x: Tensor, context: Tensor, stream: Stream, attention: AttentionFunction) -> list[Tensor]:
        """What each context block adds to the tokens x (B, N, C) of its block; context (B, in_dim + 1, T, h, w)."""
        tokens = rearrange(self.patch_embedding(context), "b c t h w -> b (t h w) c")
        tokens, found = self.before(tokens) + x, []
        for block, after in zip(self.blocks, self.after, strict=True):
            tokens = block(tokens, stream, None, 1.0, attention)
            found.append(after(tokens))
        return found


class VaceTransformer(ContextAnyoneTransformer):
    """The network with context blocks, in the interface of Phantom's: the clean reference is the last latent frame."""

    context: ContextBranch

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        *,
        attention: AttentionFunction | None = None,
        **options: Any,
    ) -> TransformerOutput:
        """Velocity of the reference's place and the video, and zeros for the clean reference.

        Args:
            latents: (B, in_dim, 1 + T + 1, h, w): the noisy place of the reference, the noisy video, and the clean
                reference, zeros where it is dropped.
        """
        noisy, shown = latents[:, :, :-1], latents[:, :, -1:]
        grid, attention = self._grid(noisy), attention or self.attention
        time_embeds, modulation = self._embed_time(timesteps, noisy)
        table = video_table((grid,), self.config.head_dim, noisy.device)
        stream = Stream(modulation, self.text_embedding(text_embeds), table, (math.prod(grid),))
        x = self._embed_patches(noisy)
        hints = self.context.hints(x, _context(noisy, shown), stream, attention)
        for index, block in enumerate(self.blocks):
            x = block(x, stream, None, 1.0, attention)
            if index % _EVERY == 0:
                x = x + hints[index // _EVERY]
        velocity = self._unpatch(self.head(x, time_embeds), grid)
        return TransformerOutput(torch.cat([velocity, torch.zeros_like(shown)], dim=2), None)

    def backbone(self) -> ContextAnyoneTransformer:
        """The network without its context blocks; both share their weights."""
        with torch.device("meta"):
            built = ContextAnyoneTransformer(self.config, attention=self.attention)
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("context.")}
        built.load_state_dict(own, assign=True)
        return built


def context_share(network: ContextAnyoneTransformer) -> float:
    """How many context blocks there are for each block."""
    return len(network.context.blocks) / len(network.blocks) if isinstance(network, VaceTransformer) else 0.0


def save_context(path: Path, network: VaceTransformer, dtype: torch.dtype) -> None:
    """Write the context blocks beside the transformer's file. Raises as `save_safetensors`."""
    tensors = {name: tensor.to(dtype) for name, tensor in network.context.state_dict().items()}
    save_safetensors(path, tensors, kind=_KIND, config={})


def load_context(path: Path, network: VaceTransformer) -> None:
    """Read the context blocks into a network, in float32. Raises CheckpointError where the file is damaged."""
    tensors = {name: tensor.float() for name, tensor in load_tensors(path, kind=_KIND).items()}
    network.context.load_state_dict(tensors)


def with_place(clips: EncodedClips) -> EncodedClips:
    """A batch whose clips have the reference before them, which the network generates too."""
    place = clips.reference_latents[:, :, :1]
    return replace(
        clips,
        latents=torch.cat([place, clips.latents], dim=2),
        weights=torch.cat([torch.ones_like(place[:, :1]), clips.weights], dim=2),
    )


def _context(noisy: Tensor, shown: Tensor) -> Tensor:
    """The clean reference and then nothing (B, in_dim, 1 + T, h, w), and where to generate: all but the reference."""
    given = torch.zeros_like(noisy)
    given[:, :, :1] = shown
    mask = torch.ones_like(noisy[:, :1])
    mask[:, :, :1] = 0
    return torch.cat([given, mask], dim=1)
