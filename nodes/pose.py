"""The nodes for poses: keypoints that come with the pack, and what a video shall follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from comfy_api.latest import io, ui

from ..contextanyone_core.errors import InputError
from ..contextanyone_core.generation.conditions import check_window
from ..contextanyone_core.media.video_io import FPS
from ..contextanyone_core.pose.fitting import FITS
from ._comfy.notes import note
from ._comfy.poses import (
    NO_FILE,
    GivenPose,
    KeypointSettings,
    body_files,
    body_state,
    example_pose,
    example_pose_names,
    given_body,
    pose_preview,
    take_drawn,
    take_keypoints,
)
from .inputs import CATEGORY, RANGES, Keypoints, Pose, check_choice, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from ._comfy.types import Keypoints as PoseKeypoints

_AUTO = "auto"
_FITS = [_AUTO, *FITS]
_WINDOW = "Share of the steps"


class PoseSettings(TypedDict):
    """The widgets of ContextAnyone Pose."""

    fit: str
    person: int
    fps: float
    pose_start: float
    pose_end: float
    body_file: str


class ContextAnyoneExamplePose(io.ComfyNode):
    """Keypoints that come with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneExamplePose",
            display_name="ContextAnyone Example Pose",
            category=CATEGORY,
            description="A motion of the miniature's world as keypoints, to start from: nothing to download, no "
            "detector. For your own videos use SDPose Keypoint Extractor or DWPose.",
            search_aliases=["contextanyone", "example", "dance", "walk", "openpose", "keypoints"],
            inputs=[
                io.Combo.Input("motion", options=example_pose_names(), tooltip="One of the motions of the pack."),
                RANGES["length"].whole(
                    "length", 81, "Frames of it, 16 a second, as many as the video has: at most 81."
                ),
            ],
            outputs=[Keypoints.Output(display_name="keypoints", tooltip="POSE_KEYPOINT, for ContextAnyone Pose.")],
        )

    @classmethod
    def validate_inputs(cls, length: int | None = None) -> bool:
        """A length that no video has is reported before the run.

        Raises:
            InputError: naming it.
        """
        check_numbers(length=length)
        return True

    @classmethod
    def execute(cls, motion: str, length: int) -> io.NodeOutput:
        """Read the keypoints.

        Raises:
            InputError: there is no such example, or it is shorter.
        """
        check_numbers(length=length)
        return io.NodeOutput(example_pose(motion, length))


class ContextAnyonePose(io.ComfyNode):
    """What the video follows: keypoints, fitted to the character's body, or drawn poses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyonePose",
            display_name="ContextAnyone Pose",
            category=CATEGORY,
            description="How the person moves, by keypoints of SDPose or DWPose, or by a video of drawn poses. "
            "Keypoints are fitted to the character's body, and drawn by Apply ContextAnyone as the model knows them. "
            "Shows the poses.",
            search_aliases=["contextanyone", "pose", "openpose", "dwpose", "dance", "motion", "animate", "retarget"],
            inputs=[
                Keypoints.Input("keypoints", optional=True, tooltip="POSE_KEYPOINT: of SDPose, DWPose, Example Pose."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="In the place of keypoints: a video of drawn poses, DWPose's colours, of the video's size.",
                ),
                Keypoints.Input(
                    "body",
                    optional=True,
                    tooltip="Whose body the pose gets: keypoints of a picture or clip of the character, standing.",
                ),
                io.Combo.Input(
                    "fit",
                    options=_FITS,
                    default=_AUTO,
                    tooltip="none: the driver's proportions. bones: the body's, at the driver's angles. affine: one "
                    "scale and place. auto: bones with a body, else none.",
                ),
                RANGES["person"].whole("person", 0, "Which person, from 1, where there are several. 0: the only one."),
                RANGES["fps"].input(
                    "fps",
                    0.0,
                    f"Frames a second of what comes in. 0: what the keypoints state, else {FPS}, with a note.",
                ),
                RANGES["pose_start"].input("pose_start", 0.0, f"{_WINDOW} from which on the pose acts.", advanced=True),
                RANGES["pose_end"].input("pose_end", 1.0, f"{_WINDOW} up to which the pose acts.", advanced=True),
                io.Combo.Input(
                    "body_file",
                    options=body_files(),
                    default=NO_FILE,
                    advanced=True,
                    tooltip="In the place of body: a personal file of Load Personal Model's list, with bone lengths.",
                ),
            ],
            outputs=[Pose.Output(display_name="pose", tooltip="For Apply ContextAnyone or ContextAnyone Sampler.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],  # into the preview, so that it restores the graph
            has_intermediate_output=True,  # its note comes with every run, also where the node is cached
        )

    @classmethod
    def validate_inputs(
        cls,
        fit: str | None = None,
        person: int | None = None,
        fps: float | None = None,
        pose_start: float | None = None,
        pose_end: float | None = None,
    ) -> bool:
        """Numbers and names that no pose can be made with are reported before the run.

        Raises:
            InputError: naming the first of them.
        """
        _check(fit, pose_start, pose_end, person=person, fps=fps)
        return True

    @classmethod
    def fingerprint_inputs(cls, body_file: str | None = None, **_: object) -> tuple[int, int]:
        """A personal file that was trained again under its name is read again; a name over a link is None before.

        Raises:
            InputError: it is gone.
        """
        return (0, 0) if body_file is None else body_state(body_file)

    @classmethod
    def execute(
        cls,
        keypoints: PoseKeypoints | None = None,
        image: Tensor | None = None,
        body: PoseKeypoints | None = None,
        **settings: Unpack[PoseSettings],
    ) -> io.NodeOutput:
        """Fit the keypoints, or take the drawn poses, and show them.

        Raises:
            InputError, ShapeError: something that is connected does not fit; the message says what to do.
        """
        start, end, fps = settings["pose_start"], settings["pose_end"], settings["fps"]
        _check(settings["fit"], start, end, person=settings["person"], fps=fps)
        if (keypoints is None) == (image is None):
            raise InputError(
                "Neither keypoints nor image is connected, or both are; connect one: keypoints of SDPose or DWPose, or "
                "a video of drawn poses."
            )
        fit = None if settings["fit"] == _AUTO else settings["fit"]
        whose, odd = given_body(body, settings["body_file"]), ""
        if keypoints is not None:
            pose = take_keypoints(keypoints, whose, KeypointSettings(fit, settings["person"], fps))
        elif image is not None:
            if whose is not None or settings["person"] or fit not in (None, "none"):
                raise InputError(
                    "body, fit and person are for keypoints, and image shows drawn poses; give keypoints, or leave "
                    "body out, fit at auto and person at 0."
                )
            pose, odd = take_drawn(image, fps)
        shown = ui.ImageSaveHelper.save_animated_webp(
            pose_preview(pose), "ContextAnyone_pose", io.FolderType.temp, cls, FPS, False, 80, 0
        )
        notes = note("ContextAnyone Pose", odd, *pose.remarks)
        preview: dict[str, Sequence[object]] = {"images": [shown], "animated": [pose.num_frames > 1]}
        return io.NodeOutput(GivenPose(pose, (start, end)), ui={**preview, **(notes or {})})


def _check(fit: object, start: object, end: object, **numbers: object) -> None:
    """Refuse the first value that no pose can be made with; those over a link are None before the run."""
    check_choice("fit", fit, _FITS)
    check_numbers(**numbers, pose_start=start, pose_end=end)
    if isinstance(start, int | float) and isinstance(end, int | float):
        check_window((start, end))
