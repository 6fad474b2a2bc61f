"""Warnings of a run: notes beside a node's outputs, which web/js/notes.js shows on the page.

ComfyUI hands them to the client that queued the prompt and keeps them in its history. Where nothing is wrong there are
none.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ...contextanyone_core.encoders.reference import is_on_white
from ...contextanyone_core.generation.domain_check import beyond_the_miniature, round_trip_psnr
from ...contextanyone_core.model_specs import MINIATURE
from .references import HostVAE, ReferencePicture
from .types import Model

NOTE = "contextanyone_note"
"""Key of a node's UI output: a list of texts."""
SAID = "contextanyone_said"
"""Key of texts that are no warnings."""
THRESHOLD = "contextanyone_familiar_psnr"
"""Attribute of the miniature's VAE: below this many dB a picture is foreign to it. Other VAEs have none."""
_MANY = 8
"""References that nobody asks for by hand."""
_LOG = logging.getLogger(__name__)


def reference_note(
    model: Model, reference: tuple[ReferencePicture, ...], node: str, *more: str
) -> dict[str, list[str]] | None:
    """The UI output of a node that applies references: why the character may not be kept; None if nothing is wrong.

    Args:
        model: a MODEL of ours.
        node: the node's name on the page.
        more: further warnings; empty texts are left out.
    """
    texts = (_on_plain_wan(model, reference), _on_backgrounds(model, reference), _on_strange_pictures(reference))
    return note(node, *texts, _on_many(reference), *more)


def size_note(model: Model, size: tuple[int, int]) -> str:
    """What to tell of a video of (height, width) by the shipped miniature; "" for other models."""
    made_by = getattr(model, "cached_patcher_init", None)
    path = made_by[1][0] if made_by and made_by[1] else None
    return beyond_the_miniature(size) if isinstance(path, Path) and path.parent == MINIATURE else ""


def note(node: str, *texts: str) -> dict[str, list[str]] | None:
    """The UI output of a node with these warnings, which are logged too; None if all texts are empty."""
    shown = [f"{node}: {text}" for text in texts if text]
    for text in shown:
        _LOG.warning(text)
    return {NOTE: shown} if shown else None


def said(node: str, *texts: str) -> dict[str, list[str]] | None:
    """The same of texts that are no warnings."""
    shown = [f"{node}: {text}" for text in texts if text]
    for text in shown:
        _LOG.info(text)
    return {SAID: shown} if shown else None


def _on_plain_wan(model: Model, reference: tuple[ReferencePicture, ...]) -> str:
    if not reference or model.model.follows_references:
        return ""
    return (
        "This model is plain Wan 2.1: it was not trained to follow reference pictures. If the file is Phantom's, "
        "RefAlign's or Bernini's under another name, choose that at model of Load ContextAnyone."
    )


def _on_backgrounds(model: Model, reference: tuple[ReferencePicture, ...]) -> str:
    if not model.model.cut_out or all(is_on_white(picture.image) for picture in reference):
        return ""
    return (
        "This model was trained on subjects cut out on white, and a picture has its background: connect the mask of "
        "Remove Background (or another) to ContextAnyone Reference."
    )


def _on_many(reference: tuple[ReferencePicture, ...]) -> str:
    if len(reference) <= _MANY:
        return ""
    return (
        f"There are {len(reference)} reference pictures, and each costs memory and time. A video or an animated "
        "picture is a batch with one for each frame: put ImageFromBatch between, which takes one."
    )


def _on_strange_pictures(reference: tuple[ReferencePicture, ...]) -> str:
    strange = [str(index) for index, picture in enumerate(reference, 1) if _is_strange(picture)]
    if not strange:
        return ""
    which = "The picture is" if len(reference) == 1 else f"Picture {', '.join(strange)} is"
    return f"{which} far from the miniature's drawn world; the character will hardly be kept."


def _is_strange(picture: ReferencePicture) -> bool:
    """Whether a picture is foreign to its VAE; to one without a threshold none is."""
    threshold = getattr(picture.vae, THRESHOLD, None)
    return threshold is not None and round_trip_psnr(HostVAE(picture.vae), picture.image) < threshold
