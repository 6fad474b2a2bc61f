"""A model of one person: the LoRA on a MODEL, the body as keypoints, and the regions of a video that follows a pose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import node_helpers
import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.generation.personal import introduction, named_rows, other_base, person_regions, require_fit
from ...contextanyone_core.model.transformer import ContextAnyoneTransformer
from ...contextanyone_core.pose.body import BONES, Body
from ...contextanyone_core.pose.drawing import STYLES
from ...contextanyone_core.pose.hull import person_hull
from ...contextanyone_core.pose.openpose import to_json
from ...contextanyone_core.pose.sequence import BODY_18
from ...contextanyone_core.pose.standing import standing_figure
from ...contextanyone_core.weights.comparison import expected_tensors
from ...contextanyone_core.weights.file_hash import sha256_of
from ...contextanyone_core.weights.personal_file import PersonalFile, read_personal_file
from ...contextanyone_core.weights.safetensors_file import read_header
from .loading import file_names_only
from .model import NAMED, PERSON, PIECES
from .personal_files import personal_path
from .poses import Following, given_pose
from .references import config_of
from .types import Conditioning, Keypoints, Model

_PERSON = "contextanyone_personal_file"
"""Attachment of a MODEL that is a `PersonalFile`; its clones keep it."""
_SHOWN_BONES = ("right_shoulder", "right_elbow", "right_wrist", "right_hip", "right_knee", "right_ankle", "nose")


def load_person(model: Model, name: str, strength: float) -> tuple[Model, PersonalFile, str]:
    """A MODEL with a person's LoRA, what the file says of the person, and what is odd about it, if anything.

    Raises:
        InputError: no personal file, or no MODEL of ours.
        CheckpointError: it is damaged, or of a base of another size.
    """
    config, path = config_of(model), personal_path(name)
    with file_names_only(path):
        person = read_personal_file(path)
        lora = {key: tensor.shape for key, tensor in read_header(path).tensors.items()}
        require_fit(path.name, lora, _shapes(config))
    tensors, _ = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    patched.set_attachments(_PERSON, person)
    odd = (_second_person(person, model.get_attachment(_PERSON)), _other_base(path.name, person, model))
    return patched, person, " ".join(text for text in odd if text)


def described(name: str, person: PersonalFile) -> list[str]:
    """What the node shows of a person: how to call them, name, class and bone lengths."""
    return [f"{introduction(name, person)}. Name: {person.name}. Class: {person.class_name}.", _bones(person.body)]


def body_keypoints(person: PersonalFile) -> Keypoints | None:
    """POSE_KEYPOINT of a standing figure with the person's bone lengths, None where the file states none."""
    return None if person.body is None else to_json(standing_figure(person.body))


def with_person(
    model: Model, positive: Conditioning, following: Following, size: tuple[int, int], length: int
) -> tuple[Conditioning, str]:
    """The positive CONDITIONING with the regions of the MODEL's person, and what to tell the user where it has none.

    Regions come from the pose that the video of `length` frames and `size` follows: without one there are none.
    """
    person, pose = model.get_attachment(_PERSON), given_pose(following.pose)
    if not isinstance(person, PersonalFile):
        return positive, ""
    hull = None
    if pose is not None:
        hull = person_hull(pose.pose.for_clip(length, size).poses, STYLES[config_of(model).pose_style])
    missing, entries = "", []
    for entry in positive:
        pieces = entry[1].get(PIECES)
        rows, unnamed = ((), _NO_TEXT) if pieces is None else named_rows(json.loads(pieces), person)
        missing = missing or unnamed
        values: dict[str, Any] = {}
        if rows and hull is not None:
            values = {PERSON: person_regions(hull, rows).person, NAMED: torch.tensor(rows)}
        entries += node_helpers.conditioning_set_values([entry], values)
    return entries, missing


_NO_TEXT = (
    "The prompt does not come from ContextAnyone Prompt: which of its words name the person is not known, and the "
    "background may show some of them. Connect that node in its place."
)


def _shapes(config: ContextAnyoneConfig) -> dict[str, tuple[int, ...]]:
    return expected_tensors(ContextAnyoneTransformer(config, device="meta"))


def _second_person(person: PersonalFile, before: Any) -> str:
    if not isinstance(before, PersonalFile):
        return ""
    return (
        f'The model holds "{before.trigger}" already. Both are called by their words, but only "{person.trigger}" is '
        "looked for in the prompt and kept out of the background."
    )


def _other_base(file: str, person: PersonalFile, model: Model) -> str:
    """What to tell where the MODEL's file is another base; one whose file is not known is taken as it is."""
    made_by = getattr(model, "cached_patcher_init", None)
    base = made_by[1][0] if made_by and made_by[1] else None
    if not isinstance(base, Path) or not base.is_file():
        return ""
    return other_base(file, person, sha256_of(base))


def _bones(body: Body | None) -> str:
    if body is None:
        return "Bone lengths: not in the file; body gives nothing."
    ends = {BODY_18[child]: length for (_, child), length in zip(BONES, body.lengths.tolist(), strict=True)}
    parts = [f"{name.removeprefix('right_')} {ends[name]:.0f}" for name in _SHOWN_BONES if ends[name] == ends[name]]
    return f"Bone lengths up to each joint: {', '.join(parts)}."
