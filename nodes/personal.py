"""The node that loads a model of one person."""

from __future__ import annotations

from comfy_api.latest import io

from ._comfy.loading import file_state
from ._comfy.notes import note, said
from ._comfy.personal import body_keypoints, described, load_person
from ._comfy.personal_files import personal_names, personal_path
from ._comfy.types import Model
from .inputs import CATEGORY, RANGES, Keypoints, check_numbers

_NAME = "Load Personal Model"


class LoadPersonalModel(io.ComfyNode):
    """A personal file of models/loras on a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyonePersonalLoader",
            display_name=_NAME,
            category=CATEGORY,
            description="Puts one person into the model: a file that training/personalize.py made of a clip. Says "
            "which words call the person. With a pose, only the person's part of the video reads their name.",
            search_aliases=["contextanyone", "personal", "person", "character", "lora", "trigger", "animateanywhere"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ContextAnyone: the base that the file was trained on."),
                io.Combo.Input("file", options=personal_names(), tooltip="A personal file of models/loras."),
                RANGES["strength"].input(
                    "strength", 1.0, "How strongly the person is there: 1 is what the file was made for."
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect it before Apply ContextAnyone or ContextAnyone Sampler.",
                ),
                io.String.Output(display_name="trigger", tooltip="The words that call the person, for the prompt."),
                Keypoints.Output(display_name="body", tooltip="The person's bone lengths, for ContextAnyone Pose."),
            ],
            has_intermediate_output=True,  # its note comes with every run, also where the node is cached
        )

    @classmethod
    def validate_inputs(cls, strength: float | None = None) -> bool:
        """A strength that is none is told before the run.

        Raises:
            InputError: naming it.
        """
        check_numbers(strength=strength)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: object) -> tuple[int, int]:
        """A file that was trained again under its name is loaded again; a name over a link is not known yet (None).

        Raises:
            InputError: it is gone.
        """
        return (0, 0) if file is None else file_state(personal_path(file))

    @classmethod
    def execute(cls, model: Model, file: str, strength: float) -> io.NodeOutput:
        """Load the file.

        Raises:
            InputError, CheckpointError: no personal file, or one of another base; the message says what to do.
        """
        check_numbers(strength=strength)
        loaded, person, odd = load_person(model, file, strength)
        ui = (said(_NAME, *described(file, person)) or {}) | (note(_NAME, odd) or {})
        return io.NodeOutput(loaded, person.trigger, body_keypoints(person), ui=ui)
