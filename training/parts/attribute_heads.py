"""Auxiliary heads of the miniature's training that classify a character's attributes from a block's tokens.

Who somebody is makes little of the velocity's error: a body's width is two pixels. The heads ask both streams for it by
name, so that the tokens that later blocks use contain it. They are no part of the model: nothing of them
is exported. (REPA, arXiv 2410.06940, asks a middle block for a frozen encoder's features; here the labels are known.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contextanyone_core.model.blocks import TransformerBlock
from training.world import ATTRIBUTES


class AttributeHeads(nn.Module):
    """Reads the eight attributes off tokens, each with an attention of its own over them.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.look = nn.Linear(width, len(ATTRIBUTES))
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy (B,), the mean over the attributes, and the share (B,) of correct ones.

        Args:
            tokens: (B, N, width). labels: (B, 8) int64.
        """
        tokens = self.norm(tokens.float())
        read = self.look(tokens).float().softmax(1).transpose(1, 2) @ tokens
        losses, right = [], []
        for index, head in enumerate(self.heads.values()):
            logits = head(read[:, index]).float()
            losses.append(F.cross_entropy(logits, labels[:, index], reduction="none"))
            right.append(logits.argmax(-1) == labels[:, index])
        return torch.stack(losses).mean(0), torch.stack(right).float().mean(0)


class StreamTap:
    """Stores a block's output for the video's tokens and the reference's in the last pass."""

    def __init__(self, block: TransformerBlock) -> None:
        self.video: Tensor | None = None
        self.reference: Tensor | None = None
        block.register_forward_hook(self._keep, with_kwargs=True)

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """The tokens of the video and of the reference, (B, tokens, C) each; they are dropped here."""
        kept = self.video, self.reference
        self.video = self.reference = None
        return kept

    def _keep(self, block: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
        mode = options.get("mode")
        if mode == "both":
            self.video, self.reference = output
        elif mode == "reference":
            self.reference = output[0]
        else:
            self.video = output
