"""RefAlign's loss: tokens of a reference are aligned to a frozen encoder's, and kept apart from other subjects'.

Derived anew from the formulas of RefAlign (arXiv 2603.25743): with s_i a projected token of the network and t_j a
token of the frozen teacher,

    same     mean of relu(1 - cos(s_i, t_i)) over the places of one picture (margin 0)
    others   mean of relu(1 - (1 - cos(s_i, t_j))) over all tokens of other subjects (margin 1)

and their sum counts by (timestep / 1000)^3 of the video. RefAlign aligns the first 9 of 30 blocks with DINOv3; here the
teacher is the CLIP tower of the miniature, and the first 30 percent of the blocks are aligned. The teacher's tokens are
centred over the batch: in this tower all tokens share a direction, which would make other subjects' tokens alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from contextanyone_core.model.blocks import TransformerBlock
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.parts.attribute_heads import StreamTap

_SHARE = 0.3  # of the blocks, from the first on
_SAME_MARGIN, _OTHER_MARGIN = 0.0, 1.0


class ReferenceAlignment(nn.Module):
    """Projections of the first blocks' reference tokens, and the loss of them; no part of the exported model.

    Args:
        network: whose reference stream is aligned.
        width: of the teacher's tokens.
    """

    def __init__(self, network: ContextAnyoneTransformer, width: int) -> None:
        super().__init__()
        count = max(1, round(_SHARE * len(network.blocks)))
        blocks = [block for block in network.blocks[:count] if isinstance(block, TransformerBlock)]
        self._taps = [StreamTap(block) for block in blocks]
        dim = network.config.dim
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, width)) for _ in blocks
        )

    def forget(self) -> None:
        """Drop what the blocks last computed."""
        for tap in self._taps:
            tap.take()

    def forward(self, teacher: Tensor, sigma: Tensor) -> Tensor:
        """The loss of each sample, (B,), of the last pass, which had references; its tokens are dropped.

        Args:
            teacher: the frozen encoder's tokens of the references (B, 1 + n * n, width), the first of them the class's.
            sigma: noise levels of the videos, (B,).
        """
        losses = []
        for tap, project in zip(self._taps, self.projections, strict=True):
            _, tokens = tap.take()
            assert tokens is not None
            wanted = F.normalize(centred(at_places(teacher.float(), tokens.shape[1])), dim=-1)
            losses.append(alignment_loss(F.normalize(project(tokens.float()).float(), dim=-1), wanted))
        return sigma**3 * torch.stack(losses).mean(0)


def at_places(teacher: Tensor, count: int) -> Tensor:
    """Square tokens of a teacher (B, 1 + n * n, D), without the class's, at `count` = m * m places: (B, count, D)."""
    patches = teacher[:, 1:]
    side, wanted = math.isqrt(patches.shape[1]), math.isqrt(count)
    grid = rearrange(patches, "b (h w) c -> b c h w", h=side)
    return F.interpolate(grid, (wanted, wanted), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def centred(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) without the mean of all of them."""
    return tokens - tokens.mean((0, 1), keepdim=True)


def alignment_loss(tokens: Tensor, teacher: Tensor) -> Tensor:
    """The loss of each sample (B,) of tokens and teacher (B, N, D) of length 1; samples are different subjects."""
    count = len(tokens)
    same = F.relu(1 - (tokens * teacher).sum(-1) - _SAME_MARGIN).mean(1)
    if count == 1:
        return same
    cosines = torch.einsum("and,bmd->abnm", tokens, teacher)
    others = F.relu(_OTHER_MARGIN - (1 - cosines)).mean((2, 3))
    apart = others.sum(1) - others.diagonal()
    return same + apart / (count - 1)
