"""Encoded conditions of a batch of videos: prompts, references, pose and start frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import InputError, ShapeError
from ..model.condition import VideoCondition, present_frames
from ..model.references import ReferenceInputs
from ..model.regions import Regions

WHOLE_RUN = (0.0, 1.0)
"""The window of steps that a pose acts in by default: all of them."""


@dataclass(frozen=True)
class Conditions:
    """Encoded conditions of a batch of videos.

    Attributes:
        text_embeds: (B, text_len, text_dim), the video's prompt.
        negative_embeds: the same shape, the negative prompt.
        references: inputs of the reference stream; None is plain text to video.
        video: pose and start frame of the video, for every pass of a step, and the person's regions, for the passes
            with the prompt; None is none of them.
    """

    text_embeds: torch.Tensor
    negative_embeds: torch.Tensor
    references: ReferenceInputs | None
    video: VideoCondition | None = None


def check_batch(conditions: Conditions, videos: int) -> None:
    """Refuse conditions of another batch; references, pose and start may be a batch of 1, which serves all videos.

    Raises:
        ShapeError: naming the condition.
    """
    given = {"conditions": conditions.text_embeds, "negative prompts": conditions.negative_embeds}
    if conditions.references is not None and len(conditions.references.latents[0]) != 1:
        given["references"] = conditions.references.latents[0]
    for name, tensor in given.items():
        if len(tensor) != videos:
            raise ShapeError(f"noise is for {videos} videos, the {name} for {len(tensor)}.")


def check_window(window: tuple[float, float]) -> None:
    """Check that a window of steps is two numbers from 0 to 1, the lower first.

    Raises:
        InputError: it is not.
    """
    start, end = window
    if not 0 <= start <= end <= 1:
        raise InputError(
            f"The pose acts from {start:g} to {end:g}; two shares of the steps from 0 to 1 are needed, the lower first."
        )


def condition_at(
    video: VideoCondition | None, share: float, strength: float, window: tuple[float, float]
) -> VideoCondition | None:
    """The conditions of one step: the start frame always, the pose within its window.

    Outside the window the regions are left out too, as they are made from the pose.

    Args:
        video: conditions of the whole run.
        share: fraction of the steps before this one, from 0 to below 1.
        strength: factor of the pose's latents; 0 leaves the pose out.
        window: the fractions between which the pose acts, the first included, the second not.
    """
    if video is None or video.pose is None or (strength == 1 and window == WHOLE_RUN):
        return video
    if strength == 0 or not window[0] <= share < window[1]:
        return replace(video, pose=None, regions=None)
    return replace(video, pose=strength * video.pose)


def without_regions(video: VideoCondition | None) -> VideoCondition | None:
    """The conditions of a pass with the negative prompt, which does not name the person: pose and start frame."""
    return video if video is None or video.regions is None else replace(video, regions=None)


def lead_to_start(
    velocity: torch.Tensor, latents: torch.Tensor, sigma: float, video: VideoCondition | None
) -> torch.Tensor:
    """A step's velocity, replaced in the start frames by the one that leads to them: the video begins with them.

    The network sees the clean start frames in their condition channels; only its velocity of the other frames is used.
    (Wan 2.2's 5B image-to-video model keeps its first frame likewise.)

    Args:
        velocity, latents: (B, C, T, h, w), float32.
        sigma: the step's noise level, above 0.
        video: conditions with the start frames; without any, the velocity is returned as it is.
    """
    if video is None or video.start is None:
        return velocity
    start = video.start.to(latents)
    frames = start.shape[2]
    exact = (latents[:, :, :frames] - start) / sigma
    first = torch.where(present_frames(start), exact, velocity[:, :, :frames])
    return torch.cat([first, velocity[:, :, frames:]], dim=2)


def stack_conditions(conditions: Sequence[Conditions]) -> Conditions:
    """Stack the conditions of several videos into one batch.

    Raises:
        InputError: there are none, they have different numbers of references, or only some have a pose or start frame.
        ShapeError: two videos differ in the size of a reference, of its CLIP tokens, of a pose or of a start frame.
    """
    references = [item.references for item in conditions if item.references is not None]
    counts = {len(item.latents) for item in references} | {0 for item in conditions if item.references is None}
    if len(counts) != 1:
        raise InputError(f"A batch needs videos with the same number of references; given are {sorted(counts)}.")
    if len({tuple(latents.shape for latents in r.latents) for r in references}) > 1:
        raise ShapeError("A batch needs references of one size; encode them for the same width and height.")
    if len({tuple(tokens.shape for tokens in r.image_embeds) for r in references}) > 1:
        raise ShapeError(
            "A batch needs CLIP tokens of one shape for every reference; encode them by one image encoder."
        )
    text = torch.cat([item.text_embeds for item in conditions])
    negative = torch.cat([item.negative_embeds for item in conditions])
    video = _stacked([item.video or VideoCondition() for item in conditions])
    if not references:
        return Conditions(text, negative, None, video)
    latents = [torch.cat(views) for views in zip(*(item.latents for item in references), strict=True)]
    embeds = [torch.cat(views) for views in zip(*(item.image_embeds for item in references), strict=True)]
    first = torch.cat([item.text_embeds for item in references])
    return Conditions(text, negative, ReferenceInputs(latents, first, embeds), video)


def _stacked(videos: Sequence[VideoCondition]) -> VideoCondition | None:
    pose, start = (_joined(name, [getattr(item, name) for item in videos]) for name in ("pose", "start"))
    regions = _joined_regions([video.regions for video in videos])
    return None if pose is None and start is None and regions is None else VideoCondition(pose, start, regions)


def _joined_regions(each: Sequence[Regions | None]) -> Regions | None:
    """Regions of all videos; those without regions get some in which no token names the person, without effect."""
    given = [item for item in each if item is not None]
    if not given:
        return None
    if len({item.person.shape for item in given}) > 1:
        raise ShapeError("A batch needs regions of one shape; make them for the same frames and size.")
    empty = Regions(torch.zeros_like(given[0].person), ((),))
    filled = [item or empty for item in each]
    return Regions(torch.cat([item.person for item in filled]), tuple(rows for item in filled for rows in item.named))


def _joined(name: str, parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    given = [part for part in parts if part is not None]
    if len(given) not in (0, len(parts)):
        raise InputError(
            f"A batch needs videos that all have a {name} condition, or none; {len(given)} of {len(parts)} do."
        )
    if len({part.shape for part in given}) > 1:
        raise ShapeError(f"A batch needs {name} conditions of one shape; encode them for the same frames and size.")
    return torch.cat(given) if given else None
