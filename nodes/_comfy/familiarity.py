"""A word under the node on whether the pictures are of the world that the miniature knows."""

from __future__ import annotations

from server import PromptServer

from ...contextanyone_core.generation.domain_check import round_trip_psnr
from .references import HostVAE, ReferencePicture

THRESHOLD = "contextanyone_familiar_psnr"
"""Attribute of the miniature's VAE: below this many dB a picture is foreign to it. Other VAEs have none."""


def say_how_familiar(node_id: str | None, reference: tuple[ReferencePicture, ...]) -> None:
    """Tell of pictures that the miniature cannot know; they are used all the same. Other models are not asked.

    Where nothing is strange that is said too: a line stays under its node until another takes its place.
    """
    found = [_is_strange(picture) for picture in reference]
    if all(strange is None for strange in found):
        return
    strangers = [str(index) for index, strange in enumerate(found, 1) if strange]
    if not strangers:
        say(node_id, f"{'The picture is' if len(reference) == 1 else 'All pictures are'} of the miniature's world.")
        return
    which = "The picture" if len(reference) == 1 else f"Picture {', '.join(strangers)}"
    say(node_id, f"{which} is far from the miniature's drawn world; the character will hardly be kept.")


def say(node_id: str | None, text: str) -> None:
    """Show a line under a node, where a server is there to show it."""
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)


def _is_strange(picture: ReferencePicture) -> bool | None:
    """Whether a picture is foreign to its VAE; None where that does not say."""
    threshold = getattr(picture.vae, THRESHOLD, None)
    return None if threshold is None else round_trip_psnr(HostVAE(picture.vae), picture.image) < threshold
