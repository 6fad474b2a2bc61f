"""Encoders loaded on demand: read from file for each use and freed afterwards, so that only one is in memory.

A text encoder that is kept, and too large for the card, is streamed to it as well.
"""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..runtime.devices import free_bytes, free_cached
from ..runtime.memory import MOST_OF_FREE
from ..runtime.offload import stream_text_encoder
from ..weights.naming import IMAGE_ENCODER
from ..weights.source import open_source
from .image import IMAGE_KEYS, ImageEncoder, load_image_encoder
from .loading import checked_config
from .text import TextEncoder, Tokenizer, load_text_encoder, read_tokenizer


class OnDemandTextEncoder(Tokenizer):
    """A `TextEncoder` whose weights are in memory only while it encodes; the tokenizer stays loaded.

    Args:
        path: as for `load_text_encoder`.
        dtype: compute dtype.
        device: compute device, to which the blocks are streamed one by one.

    Raises:
        CheckpointError, MissingDependencyError: as `read_tokenizer`.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        tokenizer, self.text_dim = read_tokenizer(path)
        super().__init__(tokenizer.spiece_model, tokenizer.text_len)
        self._path, self._dtype, self._device = path, dtype, device
        self._kept: dict[str, torch.Tensor] = {}

    def keep(self, prompts: Sequence[str]) -> None:
        """Encode prompts in advance, with a single load of the weights, and cache the embeddings (CPU, float32)."""
        left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if not left:
            return
        with _lent(self._device):
            encoder = _streamed_text_encoder(self._path, self._dtype, self._device)
            for prompt in left:
                self._kept[prompt] = encoder.encode([prompt])[0, : self.count_tokens(prompt)].cpu()
            del encoder

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings as of `TextEncoder.encode`, on the CPU.

        Raises:
            InputError: a prompt has more than `text_len` tokens.
        """
        self.keep(prompts)
        embeds = torch.zeros(len(prompts), self.text_len, self.text_dim)
        for row, prompt in zip(embeds, prompts, strict=True):
            kept = self._kept[prompt]
            row[: len(kept)] = kept
        return embeds


class OnDemandImageEncoder:
    """An `ImageEncoder` whose weights are in memory only while it encodes; the tokens of each picture are cached.

    Args:
        path: as for `load_image_encoder`.
        dtype, device: compute dtype and device.

    Raises:
        CheckpointError: the file is of another kind, or its header is damaged.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        config = checked_config(open_source(path), IMAGE_ENCODER, IMAGE_KEYS)
        self.image_size, self.image_dim = int(config["image_size"]), int(config["hidden_size"])
        self._path, self._dtype, self._device = path, dtype, device
        self._kept: dict[bytes, torch.Tensor] = {}

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate hidden states as of `ImageEncoder.encode`, on the CPU, cached by picture.

        Raises:
            ShapeError: the pictures do not have the tower's `image_size`.
        """
        key = hashlib.sha256(images.float().cpu().numpy().tobytes()).digest()
        if key not in self._kept:
            with _lent(self._device):
                self._kept[key] = load_image_encoder(self._path, self._dtype, self._device).encode(images).cpu()
        return self._kept[key]


def load_fitting_text_encoder(path: Path, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    """As `load_text_encoder`; where the device has no room for the weights, their blocks are streamed to it one by one.

    Raises: as `load_text_encoder`.
    """
    free = free_bytes(device)
    size = dtype.itemsize * sum(math.prod(info.shape) for info in open_source(path).tensors.values())
    if free is None or size <= MOST_OF_FREE * free:
        return load_text_encoder(path, dtype, device)
    return _streamed_text_encoder(path, dtype, device)


def _streamed_text_encoder(path: Path, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    loaded = load_text_encoder(path, dtype)
    stream_text_encoder(loaded.model, device)
    return TextEncoder(loaded.model, loaded.spiece_model, loaded.text_len, device=device)


AnyTextEncoder = TextEncoder | OnDemandTextEncoder
AnyImageEncoder = ImageEncoder | OnDemandImageEncoder


@contextmanager
def _lent(device: torch.device) -> Iterator[None]:
    """On exit, free objects created inside that are no longer referenced, including reference cycles of hooks."""
    try:
        yield
    finally:
        gc.collect()
        free_cached(device)
