"""Nodes that load: a ContextAnyone file, the miniature, an example picture."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ._comfy.loading import (
    AUTO,
    MODEL_CHOICES,
    WEIGHT_DTYPES,
    file_state,
    half_of_a_model,
    load_by_name,
    model_names,
    model_path,
)
from ._comfy.memory_line import memory_line
from ._comfy.miniature import example_names, example_picture, load_miniature
from ._comfy.notes import note, said
from .inputs import CATEGORY, check_choice

_LOG = logging.getLogger(__name__)


class LoadContextAnyone(io.ComfyNode):
    """A file of models/diffusion_models as a native MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneLoader",
            display_name="Load ContextAnyone",
            category=CATEGORY,
            description="Loads a ContextAnyone model, which makes videos of the character in a reference picture. "
            "Phantom, RefAlign and Bernini-R follow pictures too; a plain Wan 2.1 text-to-video file knows none.",
            search_aliases=[
                "contextanyone",
                "reference to video",
                "character",
                "subject",
                "identity",
                "wan",
                "phantom",
                "refalign",
                "bernini",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(),
                    tooltip="A file of models/diffusion_models. Other kinds of files are refused; the message says "
                    "what they are.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="How the weights are kept in memory. fp8 takes half of bf16's memory and costs quality.",
                ),
                io.Combo.Input(
                    "model",
                    options=MODEL_CHOICES,
                    default=AUTO,
                    optional=True,
                    tooltip="Which model a file with Wan's tensors is: the tensors cannot tell. auto goes by the name "
                    "of the file or of its folder, else it takes it for wan.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For Apply ContextAnyone, LoRA loaders, samplers.")],
            has_intermediate_output=True,  # its note comes with every run, also where the node is cached
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None = None, **_: object) -> tuple[int, int]:
        """A file that was exported again under its name is loaded again; a name over a link is not known yet (None).

        Raises:
            CheckpointError: it is gone.
        """
        return (0, 0) if model_name is None else file_state(model_path(model_name))

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default", model: str = AUTO) -> io.NodeOutput:
        """Load the file.

        Raises:
            InputError, CheckpointError: nothing of that name, or another kind of file.
        """
        check_choice("weight_dtype", weight_dtype, list(WEIGHT_DTYPES))
        check_choice("model", model, MODEL_CHOICES)
        loaded, abilities = load_by_name(model_name, weight_dtype, model)
        line, fits = memory_line(loaded)
        _LOG.info("%s is %s %s", model_name, abilities, line)
        name = "Load ContextAnyone"
        ui = (note(name, "" if fits else line) or {}) | (said(name, half_of_a_model(model_name)) or {})
        return io.NodeOutput(loaded, ui=ui or None)


class LoadContextAnyoneMiniature(io.ComfyNode):
    """The weights that come with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Outputs; there is nothing to choose."""
        return io.Schema(
            node_id="ContextAnyoneMiniatureLoader",
            display_name="Load ContextAnyone Miniature",
            category=CATEGORY,
            description="The small trained model that comes with this pack: nothing to download, half a minute for a "
            "video on a CPU. It knows one drawn world of little people, at 128 x 128 and 17 frames; photographs are "
            "beyond it.",
            search_aliases=["contextanyone", "miniature", "demo", "example", "cpu", "tiny"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The miniature transformer."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, a small umT5."),
                io.Vae.Output(display_name="vae", tooltip="Its video VAE, Wan 2.1's architecture and narrower."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="Its image encoder, a small CLIP tower."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load the four files."""
        return io.NodeOutput(*load_miniature())


class ContextAnyoneExamplePicture(io.ComfyNode):
    """A picture that comes with the pack: Load Image reads only ComfyUI's own input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneExamplePicture",
            display_name="ContextAnyone Example Picture",
            category=CATEGORY,
            description="A character of the miniature's world, to start from. Use Load Image for your own pictures.",
            search_aliases=["contextanyone", "example", "demo", "sample image", "character"],
            inputs=[
                io.Combo.Input(
                    "picture", options=example_names(), tooltip="One of the pictures that come with the pack."
                )
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture, for ContextAnyone Reference.")],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        """Read the picture."""
        return io.NodeOutput(example_picture(picture))
