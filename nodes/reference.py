"""The node that takes reference pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ._comfy.references import ReferencePicture, given_references, shown, take_pictures
from ._comfy.types import ClipVision, Vae
from .inputs import CATEGORY, Reference

if TYPE_CHECKING:
    from torch import Tensor


class ContextAnyoneReference(io.ComfyNode):
    """The dual encoder's intake: what CLIP and the VAE will see of the character."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneReference",
            display_name="ContextAnyone Reference",
            category=CATEGORY,
            description="The character, by one picture or several: other views, other people. The whole picture "
            "counts: it is padded with white to the video's shape, never cropped. Chain these nodes for several "
            "pictures, or give a batch. Shows what is encoded.",
            search_aliases=["contextanyone", "reference image", "character", "subject", "identity", "ip-adapter"],
            inputs=[
                io.Image.Input("image", tooltip="The character. Several pictures in a batch are several references."),
                io.Vae.Input("vae", tooltip="The video VAE, for how the character looks."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP vision, for what the character is. Models without a CLIP branch need none.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where the character is; everything else becomes white. The mask editor's is right as it "
                    "is; a transparent picture's is the other way round: invert it.",
                ),
                Reference.Input("reference", optional=True, tooltip="References that come before this one."),
            ],
            outputs=[
                Reference.Output(display_name="reference", tooltip="For Apply ContextAnyone or ContextAnyone Sampler.")
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],  # into the preview, so that it restores the graph
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        vae: Vae,
        clip_vision: ClipVision | None = None,
        mask: Tensor | None = None,
        reference: tuple[ReferencePicture, ...] = (),
    ) -> io.NodeOutput:
        """Prepare the pictures and show them.

        Raises:
            InputError, ShapeError: no picture, or an empty one; the message states the remedy.
        """
        pictures = (*given_references(reference), *take_pictures(image, mask, vae, clip_vision))
        return io.NodeOutput(pictures, ui=ui.PreviewImage(shown(pictures), cls=cls))
