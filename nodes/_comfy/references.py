"""From pictures and prompts to conditionings, with ComfyUI's own encoders."""

from __future__ import annotations

import copy
import hashlib
import json
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
    own_picture_size,
)
from ...contextanyone_core.errors import InputError, ShapeError
from ...contextanyone_core.prompts import TwoStagePrompt
from ...contextanyone_core.shapes import VideoShape
from .given import checked_images, checked_masks, require_conditioning, require_given
from .model import APPLIED, CONDITION, EMPHASIS, FIRST_PROMPT, PIECES, REFERENCES, ContextAnyoneModel, widened_config
from .types import Clip, ClipVision, Conditioning, Model, Vae

_PATCHES = "diffusion_model.patch_embedding.weight"
_NO_TEXT = "\0\0embedding"
"""A text that no prompt contains."""


class HostVAE:
    """ComfyUI's VAE for images (1, 3, T, H, W) in [-1, 1], as the core's encoders are called."""

    def __init__(self, vae: Vae) -> None:
        self.vae = vae

    def encode(self, images: torch.Tensor, /) -> torch.Tensor:
        """Raw latents (1, 16, t, h, w) of a picture or a video (1, 3, T, H, W)."""
        latents: torch.Tensor = self.vae.encode((images[0].movedim(0, -1) + 1.0) / 2.0)
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of raw latents."""
        images: torch.Tensor = self.vae.decode(latents).movedim(-1, 1) * 2.0 - 1.0
        return images


class HostVision:
    """ComfyUI's CLIP vision model, as the core's image encoder is called: neither cropped nor rounded to 8 bits."""

    def __init__(self, clip_vision: ClipVision) -> None:
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
    vae: Vae
    image_embeds: torch.Tensor | None


@dataclass(frozen=True)
class AppliedReferences:
    """References in a conditioning: one tensor per reference, and the gap.

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


@dataclass(frozen=True)
class PromptNames:
    """How error messages name the prompts: by the node input that they come from, at the beginning of a sentence."""

    positive: str
    first: str
    negative: str


def take_pictures(
    image: torch.Tensor, mask: torch.Tensor | None, vae: Vae, clip_vision: ClipVision | None
) -> list[ReferencePicture]:
    """Prepare a batch of pictures (n, H, W, 3 or 4) in [0, 1] as references.

    Args:
        mask: (n or 1, h, w), (h, w) or with further dimensions of 1, 1 where the subject is; the rest becomes white.
        vae, clip_vision: ComfyUI's; clip_vision may be None.

    Raises:
        InputError: no picture, or an empty picture or mask.
        ShapeError: other channels, or as many masks as pictures are needed, or one.
    """
    image = checked_images(image)
    require_given(vae=vae)
    if mask is not None:
        mask = checked_masks(mask, len(image))
    encoder = DualEncoder(HostVAE(vae), None if clip_vision is None else HostVision(clip_vision))
    taken = []
    for index, pixels in enumerate(image):
        picture = on_white_by_alpha(pixels.float().movedim(-1, 0)[None], "The picture")
        if mask is not None:
            picture = on_white(picture, mask[index if len(mask) > 1 else 0][None, None])
        taken.append(ReferencePicture(picture, vae, encoder.semantic_tokens(picture)))
    return taken


def on_white_by_alpha(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """A picture (1, 3 or 4, H, W) in [0, 1] as (1, 3, H, W) in [-1, 1], over white where it is transparent.

    Raises:
        InputError: it is transparent everywhere, or nothing that can be encoded.
    """
    picture = pixels[:, :3] * 2.0 - 1.0
    check_picture(picture)
    if pixels.shape[1] == 3:
        return picture
    if not pixels[:, 3].any():
        raise InputError(f"{name} is transparent everywhere; give one that shows a character.")
    return on_white(picture, pixels[:, 3:4])


def given_references(value: Any) -> tuple[ReferencePicture, ...]:
    """What comes over a socket CONTEXTANYONE_REFERENCE; () where nothing is connected.

    Raises:
        InputError: null, or another kind of value.
    """
    if value is None:
        raise InputError(
            "reference is null; connect ContextAnyone Reference, or disconnect the input to work without a picture."
        )
    if not isinstance(value, tuple) or not all(isinstance(picture, ReferencePicture) for picture in value):
        raise InputError(f"reference is a {type(value).__name__}; connect ContextAnyone Reference.")
    return value


def shown(reference: tuple[ReferencePicture, ...]) -> torch.Tensor:
    """The references as squares side by side in a batch (n, S, S, 3) in [0, 1], white-padded: what is encoded."""
    side = max(max(picture.image.shape[2:]) for picture in reference)
    side = min(side, 512)
    return torch.cat([(clip_picture(picture.image, side).movedim(1, -1) + 1.0) / 2.0 for picture in reference])


def encode_prompt(clip: Clip, prompt: TwoStagePrompt, negative: str) -> tuple[Conditioning, Conditioning]:
    """Positive and negative CONDITIONING of a two-stage prompt; the positive one carries the first-frame prompt.

    Raises:
        InputError: clip is null.
    """
    require_given(clip=clip)
    positive = _encode_text(clip, prompt.video_text)
    first = _encode_text(clip, prompt.reference_text)[0][0]
    values = {FIRST_PROMPT: first} | _pieces(clip, prompt.video_text)
    return node_helpers.conditioning_set_values(positive, values), _encode_text(clip, negative)


def apply_references(
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    reference: tuple[ReferencePicture, ...],
    size: tuple[int, int],
    *,
    emphasis: float,
    gap: float | None,
    names: PromptNames,
) -> Conditioning:
    """Check that everything belongs together, encode the references for a video of `size`, return the new positive.

    Raises:
        InputError: a model of another kind, or a prompt that is missing or too long.
        ShapeError: an encoder of another model.
    """
    config = config_of(model)
    require_conditioning(positive=positive, negative=negative)
    for conditioning, name in ((positive, names.positive), (negative, names.negative)):
        for text, _ in conditioning:
            fit_text_embeds(text, config, name)
    values: dict[str, Any] = {EMPHASIS: float(emphasis)}
    own_size = model.model.own_size
    latents = tuple(_encode_picture(picture, size, config, own_size=own_size) for picture in reference)
    tokens = _tokens(reference, config)
    applied = []
    for text, extras in positive:
        if latents:
            first = extras.get(FIRST_PROMPT, text)
            fit_text_embeds(first, config, names.first)
            values[REFERENCES] = AppliedReferences(latents, tokens, first, gap)
        applied += node_helpers.conditioning_set_values([[text, extras]], values)
    return applied


def without_applied(conditioning: Conditioning) -> Conditioning:
    """A CONDITIONING without anything that an earlier Apply ContextAnyone added to it; the last one replaces it all."""
    kept = [(text, {key: extras[key] for key in extras if key not in APPLIED}) for text, extras in conditioning]
    return node_helpers.conditioning_set_values(kept, {})


def references_of(positive: Conditioning) -> AppliedReferences | None:
    """The references that a positive CONDITIONING carries, None without."""
    found = next((extras[REFERENCES] for _, extras in positive if extras.get(REFERENCES) is not None), None)
    return found if isinstance(found, AppliedReferences) else None


def with_references_of(positive: Conditioning, negative: Conditioning) -> Conditioning:
    """The negative CONDITIONING, with its own text, and the references and emphasis of the positive one."""
    seen: dict[str, Any] = next((extras for _, extras in positive if extras.get(REFERENCES) is not None), {})
    values = {key: seen[key] for key in (REFERENCES, EMPHASIS) if key in seen}
    return node_helpers.conditioning_set_values(negative, values)


def with_condition_of(positive: Conditioning, other: Conditioning) -> Conditioning:
    """Another CONDITIONING with the pose and start frame of the positive one, which every pass has."""
    found: dict[str, Any] = next((extras for _, extras in positive if extras.keys() & set(CONDITION)), {})
    values = {key: found[key] for key in CONDITION if key in found}
    return node_helpers.conditioning_set_values(other, values) if values else other


def unconditional_of(model: Model, positive: Conditioning, negative: Conditioning) -> Conditioning:
    """The negative CONDITIONING of the unconditional pass: without references, with zeros, or with the references.

    Which of these is the model's `unconditional`.
    """
    applied = references_of(positive)
    if applied is None or model.model.unconditional == "nothing":
        return negative
    if model.model.unconditional == "references":
        return with_references_of(positive, negative)
    zeros = tuple(model.model.process_latent_out(torch.zeros_like(item)) for item in applied.latents)
    blank = AppliedReferences(zeros, (), applied.text_embeds, applied.gap)
    return node_helpers.conditioning_set_values(negative, {REFERENCES: blank})


def without_references(negative: Conditioning) -> Conditioning:
    """A negative CONDITIONING without references, and without zeros in their place."""
    return node_helpers.conditioning_set_values(negative, {REFERENCES: None})


def config_of(model: Model) -> ContextAnyoneConfig:
    """The config of a MODEL of ours, with the condition channels that a LoRA of its adds.

    Raises:
        InputError: it is null, or another model.
    """
    require_given(model=model)
    inner = getattr(model, "model", model)
    if not isinstance(inner, ContextAnyoneModel):
        kind = type(inner).__name__
        raise InputError(f"This MODEL is a {kind}; ContextAnyone's nodes need one from Load ContextAnyone.")
    shapes = [shape for patch in getattr(model, "patches", {}).get(_PATCHES, ()) if (shape := _shape_of(patch[1]))]
    return widened_config(inner.config, shapes[-1][1]) if shapes else inner.config


def _shape_of(adapter: Any) -> tuple[int, ...] | None:
    """The shape to which a patch of ComfyUI's widens its weight; None leaves it."""
    stated = getattr(adapter, "calculate_shape", None)
    return None if stated is None else stated(_PATCHES)


def empty_latents(config: ContextAnyoneConfig, size: tuple[int, int], length: int, batch_size: int) -> torch.Tensor:
    """Zeros (B, 16, t, h, w) for a video of (height, width) and `length` frames."""
    shape = VideoShape(length, *size).latents_shape(config, batch_size)
    return torch.zeros(shape, device=comfy.model_management.intermediate_device())


def _encode_text(clip: Clip, text: str) -> Conditioning:
    """CONDITIONING of a text taken literally: ComfyUI's brackets and `embedding:name` mean nothing here."""
    clip = clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    for name, tokenizer in vars(clip.tokenizer).items():
        if hasattr(tokenizer, "embedding_identifier"):
            literal = copy.copy(tokenizer)
            literal.embedding_directory, literal.embedding_identifier = None, _NO_TEXT
            setattr(clip.tokenizer, name, literal)
    return clip.encode_from_tokens_scheduled(clip.tokenize(text.replace("(", "\\(").replace(")", "\\)")))


def _pieces(clip: Clip, text: str) -> dict[str, str]:
    """The value of a conditioning with the tokens of its text; none for a CLIP without sentencepiece."""
    for tokenizer in vars(clip.tokenizer).values():
        processor = getattr(getattr(tokenizer, "tokenizer", None), "tokenizer", None)
        split = getattr(processor, "encode_as_pieces", None)
        if split is not None:
            return {PIECES: json.dumps(split(text))}
    return {}


def _encode_picture(
    picture: ReferencePicture, size: tuple[int, int], config: ContextAnyoneConfig, *, own_size: bool
) -> torch.Tensor:
    latents = DualEncoder(HostVAE(picture.vae), None, own_size=own_size).latents(picture.image, size)
    wanted = VideoShape(1, *(own_picture_size(picture.image) if own_size else size)).latents_shape(config)
    require_latents(latents, wanted)
    return latents


def require_latents(latents: torch.Tensor, wanted: tuple[int, ...]) -> None:
    """Refuse latents of another shape than the model's: the VAE is another model's.

    Raises:
        ShapeError: naming both shapes and the VAE that is meant.
    """
    if tuple(latents.shape) != wanted:
        what = "a picture" if wanted[2] == 1 else "a video"
        raise ShapeError(
            f"This VAE makes latents of shape {tuple(latents.shape)} from {what}, the model needs {wanted}: use "
            "the VAE of Wan 2.1 (wan_2.1_vae), or the miniature's own for the miniature."
        )


def _tokens(reference: tuple[ReferencePicture, ...], config: ContextAnyoneConfig) -> tuple[torch.Tensor, ...]:
    if config.image_dim is None:
        return ()
    tokens = [picture.image_embeds for picture in reference]
    given = [item for item in tokens if item is not None]
    if len(given) != len(tokens):
        raise InputError(
            "A reference has no CLIP vision, and this model reads it: connect clip_vision at ContextAnyone Reference."
        )
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
