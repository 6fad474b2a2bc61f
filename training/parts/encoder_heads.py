"""The training-only heads of the encoders: the contrastive loss, and classifiers of the labels on each side."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LayerNorm, Linear

from training.parts.encoder_data import LABELS, UNKNOWN

_COUNTS = [len(values) for values in LABELS.values()]


class EncoderHeads(nn.Module):
    """Projections into the common space, its temperature, and linear classifiers of the labels.

    text_dim, image_dim: widths of the encoders; width: of the common space.
    """

    def __init__(self, text_dim: int, image_dim: int, width: int) -> None:
        super().__init__()
        self.text_projection = Linear(text_dim, width, bias=False)
        self.image_projection = Linear(image_dim, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # A caption may leave each label unnamed: one more class, the last.
        self.text_labels = Linear(text_dim, sum(_COUNTS) + len(_COUNTS))
        self.image_norm = LayerNorm(image_dim)
        self.image_labels = Linear(image_dim, sum(_COUNTS))

    def similarities(self, texts: Tensor, pictures: Tensor) -> Tensor:
        """Return scaled cosines (B text, B pictures), float32, of pooled texts and pictures (B, width each)."""
        text = F.normalize(self.text_projection(texts).float(), dim=-1)
        picture = F.normalize(self.image_projection(pictures).float(), dim=-1)
        return self.logit_scale.exp().clamp(max=100.0) * text @ picture.T

    def text_logits(self, texts: Tensor) -> list[Tensor]:
        """Return the logits of each label, (B, values + 1), from pooled texts."""
        return list(self.text_labels(texts).float().split([count + 1 for count in _COUNTS], dim=1))

    def image_logits(self, tokens: Tensor) -> list[Tensor]:
        """Return the logits of each label, (B, values), from penultimate image tokens (B, N, image_dim)."""
        return list(self.image_labels(self.image_norm(tokens.mean(1))).float().split(_COUNTS, dim=1))


def also_true(caption_labels: Tensor, picture_labels: Tensor) -> Tensor:
    """Return where (B, B) a caption is true of another's picture: false negatives of the contrastive loss.

    Paper: CLIP counts every other pair of the batch as a negative; with captions this short many are not.
    """
    named = caption_labels[:, None] != UNKNOWN
    true = (~named | (caption_labels[:, None] == picture_labels[None])).all(-1)
    return true & ~torch.eye(len(true), dtype=torch.bool, device=true.device)


def contrastive_loss(similarities: Tensor, excluded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the symmetric InfoNCE per sample (B,), and the top-1 retrieval accuracy of each side.

    excluded (B, B) marks pairs that count neither way.
    """
    similarities = similarities.masked_fill(excluded, -math.inf)
    own = torch.arange(len(similarities), device=similarities.device)
    text = F.cross_entropy(similarities, own, reduction="none")
    picture = F.cross_entropy(similarities.T, own, reduction="none")
    return (text + picture) / 2, {
        "text_to_image": (similarities.argmax(1) == own).float(),
        "image_to_text": (similarities.argmax(0) == own).float(),
    }


def label_loss(logits: list[Tensor], labels: Tensor, *, unnamed_class: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross entropy per sample (B,), a mean over the labels, and the correct ones of each label.

    labels (B, 11). UNKNOWN is a class of its own, the last, with unnamed_class, and else counts for nothing.
    """
    losses, correct = [], {}
    for name, scores, label in zip(LABELS, logits, labels.unbind(1), strict=True):
        if unnamed_class:
            label = torch.where(label == UNKNOWN, scores.shape[1] - 1, label)
        losses.append(F.cross_entropy(scores, label, ignore_index=UNKNOWN, reduction="none"))
        correct[name] = (scores.argmax(1) == label)[label != UNKNOWN].float()
    return torch.stack(losses).mean(0), correct
