"""From pictures and prompts to conditionings, with ComfyUI's own encoders."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import node_helpers
import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.encoders.reference import (
    DualEncoder,
    check_picture,
    clip_picture,
    fit_text_embeds,
    on_white,
)
from ...contextanyone_core.errors import InputError, ShapeError
from ...contextanyone_core.prompts import TwoStagePrompt
from ...contextanyone_core.shapes import VideoShape
from .model import EMPHASIS, FIRST_PROMPT, REFERENCES, ContextAnyoneModel

_LOG = logging.getLogger(__name__)


class HostVAE:
    """ComfyUI's VAE for images (B, 3, T, H, W) in [-1, 1], as the core's encoders are called."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Raw latents (B, 16, 1, h, w) of pictures."""
        latents: torch.Tensor = self.vae.encode((images[:, :, 0].movedim(1, -1) + 1.0) / 2.0)
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of raw latents."""
        images: torch.Tensor = self.vae.decode(latents).movedim(-1, 1) * 2.0 - 1.0
        return images


class HostVision:
    """ComfyUI's CLIP vision model, as the core's image encoder is called: neither cropped nor rounded to 8 bits."""

    def __init__(self, clip_vision: Any) -> None:
        self._clip_vision = clip_vision
        self.image_size: int = clip_vision.image_size

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Penultimate hidden states (B, N, D) of squares (B, 3, S, S) in [-1, 1]."""
        model = self._clip_vision
        pixels = (images + 1.0) / 2.0
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (model.image_mean, model.image_std))
        comfy.model_management.load_model_gpu(model.patcher)
        pixels = ((pixels - mean) / std).to(model.load_device)
        hidden = model.model(pixel_values=pixels, intermediate_output=-2)[1]
        tokens: torch.Tensor = hidden.float().to(comfy.model_management.intermediate_device())
        return tokens


@dataclass(frozen=True)
class ReferencePicture:
    """One picture of a CONTEXTANYONE_REFERENCE; its latents are made where the video's size is known.

    Attributes:
        image: (1, 3, H, W) in [-1, 1], the subject on white where a mask was given.
        vae: ComfyUI's VAE that will encode it.
        image_embeds: CLIP tokens (1, N, D), or None without a CLIP vision model.
    """

    image: torch.Tensor
    vae: Any
    image_embeds: torch.Tensor | None


@dataclass(frozen=True)
class AppliedReferences:
    """References as they travel in a conditioning: lists of one-reference tensors, the gap as a number.

    Attributes:
        latents: raw VAE latents, each (1, 16, 1, h, w).
        image_embeds: CLIP tokens, each (1, N, D); empty for a model without the CLIP branch.
        text_embeds: the first-frame prompt (1, L, text_dim).
        gap: latent frames between references and video; None takes the model's.
        key: hash of all of this; equal keys mean equal references.
    """

    latents: tuple[torch.Tensor, ...]
    image_embeds: tuple[torch.Tensor, ...]
    text_embeds: torch.Tensor
    gap: float | None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _hash(self))


def take_pictures(image: torch.Tensor, mask: torch.Tensor | None, vae: Any, clip_vision: Any) -> list[ReferencePicture]:
    """Prepare a batch of pictures (n, H, W, 3 or 4) in [0, 1] as references.

    Args:
        mask: (n or 1, h, w), (h, w) or with further dimensions of 1, 1 where the subject is; the rest becomes white.
        vae, clip_vision: ComfyUI's; clip_vision may be None.

    Raises:
        InputError: a picture or a mask that says nothing.
        ShapeError: as many masks as pictures are needed, or one.
    """
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-2:])
    if mask is not None and len(mask) not in (1, len(image)):
        raise ShapeError(f"There are {len(mask)} masks for {len(image)} pictures; give one, or one for each picture.")
    encoder = DualEncoder(HostVAE(vae), None if clip_vision is None else HostVision(clip_vision))
    taken = []
    for index, pixels in enumerate(image):
        picture = pixels.float().movedim(-1, 0)[None]
        shares = picture[:, 3:4] if picture.shape[1] == 4 else None
        picture = picture[:, :3] * 2.0 - 1.0
        check_picture(picture)
        if mask is not None:
            shares = mask[index if len(mask) > 1 else 0][None, None]
        elif shares is not None and not shares.any():
            raise InputError("The picture is transparent everywhere, so it says nothing; give one that shows somebody.")
        if shares is not None:
            picture = on_white(picture, shares)
        taken.append(ReferencePicture(picture, vae, encoder.semantic_tokens(picture)))
    return taken


def shown(reference: tuple[ReferencePicture, ...]) -> torch.Tensor:
    """The references as squares side by side in a batch (n, S, S, 3) in [0, 1], white-padded: what is encoded."""
    side = max(max(picture.image.shape[2:]) for picture in reference)
    side = min(side, 512)
    return torch.cat([(clip_picture(picture.image, side).movedim(1, -1) + 1.0) / 2.0 for picture in reference])


def encode_prompt(clip: Any, prompt: TwoStagePrompt, negative: str) -> tuple[Any, Any]:
    """Positive and negative CONDITIONING of a two-stage prompt; the positive one carries the first-frame prompt."""
    positive = _encode_text(clip, prompt.video_text)
    first = _encode_text(clip, prompt.reference_text)[0][0]
    return node_helpers.conditioning_set_values(positive, {FIRST_PROMPT: first}), _encode_text(clip, negative)


def apply_references(
    model: Any,
    positive: Any,
    negative: Any,
    reference: tuple[ReferencePicture, ...],
    size: tuple[int, int],
    *,
    emphasis: float,
    gap: float | None,
) -> Any:
    """Check that everything belongs together, encode the references for a video of `size`, return the new positive.

    Raises:
        InputError: a model of another kind, or a prompt that is too long.
        ShapeError: an encoder of another model.
    """
    config = config_of(model)
    for conditioning in (positive, negative):
        for text, _ in conditioning:
            fit_text_embeds(text, config)
    values: dict[str, Any] = {EMPHASIS: float(emphasis)}
    latents = tuple(_encode_picture(picture, size, config) for picture in reference)
    tokens = _tokens(reference, config)
    applied = []
    for text, extras in positive:
        if latents:
            first = extras.get(FIRST_PROMPT, text)
            fit_text_embeds(first, config)
            values[REFERENCES] = AppliedReferences(latents, tokens, first, gap)
        applied += node_helpers.conditioning_set_values([[text, extras]], values)
    if latents and not model.model.follows_references:
        _LOG.warning("This model is plain Wan 2.1: it was not trained to follow reference pictures.")
    return applied


def references_of(positive: Any) -> AppliedReferences | None:
    """The references that a positive CONDITIONING carries, None without."""
    found = next((extras[REFERENCES] for _, extras in positive if extras.get(REFERENCES) is not None), None)
    return found if isinstance(found, AppliedReferences) else None


def with_references_of(positive: Any, negative: Any) -> Any:
    """The negative CONDITIONING seeing what the positive one sees: its references and emphasis, with its own text."""
    seen = next((extras for _, extras in positive if extras.get(REFERENCES) is not None), {})
    values = {key: seen[key] for key in (REFERENCES, EMPHASIS) if key in seen}
    return node_helpers.conditioning_set_values(negative, values)


def without_references_of(model: Any, positive: Any, negative: Any) -> Any:
    """The negative CONDITIONING for the pass that sees no references: for Phantom, zeros stand in their place."""
    applied = references_of(positive)
    if applied is None or not model.model.blanks:
        return negative
    zeros = tuple(model.model.process_latent_out(torch.zeros_like(item)) for item in applied.latents)
    blank = AppliedReferences(zeros, (), applied.text_embeds, applied.gap)
    return node_helpers.conditioning_set_values(negative, {REFERENCES: blank})


def config_of(model: Any) -> ContextAnyoneConfig:
    """The config of a MODEL of ours.

    Raises:
        InputError: it is another model.
    """
    if not isinstance(model.model, ContextAnyoneModel):
        kind = type(model.model).__name__
        raise InputError(f"This MODEL is a {kind}; ContextAnyone's nodes need one from Load ContextAnyone.")
    return model.model.config


def empty_latents(config: ContextAnyoneConfig, size: tuple[int, int], length: int, batch_size: int) -> torch.Tensor:
    """Zeros (B, 16, t, h, w) for a video of (height, width) and `length` frames."""
    shape = VideoShape(length, *size).latents_shape(config, batch_size)
    return torch.zeros(shape, device=comfy.model_management.intermediate_device())


def _encode_text(clip: Any, text: str) -> Any:
    """CONDITIONING of a text taken literally: ComfyUI's brackets mean nothing here."""
    literal = text.replace("(", "\\(").replace(")", "\\)")
    return clip.encode_from_tokens_scheduled(clip.tokenize(literal))


def _encode_picture(picture: ReferencePicture, size: tuple[int, int], config: ContextAnyoneConfig) -> torch.Tensor:
    latents = DualEncoder(HostVAE(picture.vae), None).latents(picture.image, size)
    wanted = VideoShape(1, *size).latents_shape(config)
    if tuple(latents.shape) != wanted:
        raise ShapeError(
            f"This VAE makes latents of shape {tuple(latents.shape)} from a picture, the model needs {wanted}: use "
            "the VAE of Wan 2.1 (wan_2.1_vae), or the miniature's own for the miniature."
        )
    return latents


def _tokens(reference: tuple[ReferencePicture, ...], config: ContextAnyoneConfig) -> tuple[torch.Tensor, ...]:
    if config.image_dim is None:
        return ()
    tokens = [picture.image_embeds for picture in reference]
    given = [item for item in tokens if item is not None]
    if len(given) != len(tokens):
        raise InputError("A reference has no CLIP vision, and this model reads it: connect clip_vision.")
    for item in given:
        if item.shape[2] != config.image_dim:
            name = "clip_vision_h" if config.image_dim == 1280 else "the CLIP vision model that belongs to it"
            raise ShapeError(
                f"This CLIP vision model gives {item.shape[2]} channels, the model wants {config.image_dim}: "
                f"use {name}."
            )
    return tuple(given)


def _hash(references: AppliedReferences) -> str:
    digest = hashlib.sha256(repr(references.gap).encode())
    for tensor in (*references.latents, *references.image_embeds, references.text_embeds):
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
