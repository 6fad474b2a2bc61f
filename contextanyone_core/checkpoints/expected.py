"""Tensor names and shapes that an encoder's config requires, computed on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..encoders.image import build_image_model
from ..encoders.loading import on_meta
from ..encoders.text import SPIECE, build_text_model
from ..encoders.vae import build_vae
from ..errors import CheckpointError
from ..weights.checkpoint import Description
from ..weights.comparison import Differences, compare, expected_tensors
from ..weights.name_tables import vae_from_diffusers
from ..weights.naming import IMAGE_ENCODER, TEXT_ENCODER, VAE
from ..weights.source import open_source

Shapes = dict[str, tuple[int, ...]]


def host_tensors(kind: str, config: Mapping[str, Any]) -> Shapes | None:
    """Name and shape of every tensor in a file of `kind`, as the encoders' `save_...` functions write it.

    The tokenizer in a text encoder's file may have any length and has the shape () here.

    Returns: None for a kind that is not built from a diffusers or transformers class.
    Raises: the exception of diffusers or transformers, for a config that they cannot build.
    """
    known: dict[str, Callable[[Mapping[str, Any]], Shapes]] = {VAE: _vae, TEXT_ENCODER: _text, IMAGE_ENCODER: _image}
    return known[kind](config) if kind in known else None


def compare_file(found: Description) -> Differences | None:
    """Compare the tensors of a described file, a transformer or an encoder, with those that its config requires.

    Returns: None for another kind of file, or one without a config.
    Raises: CheckpointError if no model can be built from the config.
    """
    kind = found.recognised.kind
    if found.differences is not None or kind is None or not found.config:
        return found.differences
    try:
        expected = host_tensors(kind, found.config)
    except Exception as error:  # diffusers and transformers raise any exception for a bad config
        raise CheckpointError(
            f"{found.path}: no {kind} can be built from the config of this file ({error})."
        ) from error
    if expected is None:
        return None
    source = open_source(found.path)
    if SPIECE in source.tensors:
        expected[SPIECE] = source.tensors[SPIECE].shape
    elif SPIECE in expected and not source.recognised.stated:
        del expected[SPIECE]  # public files may come with a separate tokenizer
    return compare(expected, source.tensors, source.unknown)


def _vae(config: Mapping[str, Any]) -> Shapes:
    state = on_meta(lambda: build_vae(config)).state_dict()
    return {name: tuple(value.shape) for name, value in vae_from_diffusers(state).items()}


def _text(config: Mapping[str, Any]) -> Shapes:
    shapes = expected_tensors(on_meta(lambda: build_text_model(config)))
    shapes.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    return shapes | {SPIECE: ()}


def _image(config: Mapping[str, Any]) -> Shapes:
    shapes = expected_tensors(on_meta(lambda: build_image_model(config)))
    return {"vision_model." + name.removeprefix("vision_model."): shape for name, shape in shapes.items()}
