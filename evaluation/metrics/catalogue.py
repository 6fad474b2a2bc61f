"""Every number of the evaluation: its name, which way is better, and what it is; the rows that are no system's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STILL, OTHER, TRUTH = "(still reference)", "(another person)", "truth"
"""Rows of every table: the reference as a video that does not move, another person's clip, the real clip if given."""

GAPS = (1, 2, 5, 10, 20)
"""Distances in frames at which a clip is compared with itself."""

IDENTITY = ("clip_i", "clip_i_person", "dino_i", "dino_i_person", "vlm_appearance", "nexus_mean", "opens2v_face")
"""Similarities to the reference that are reported at matched motion too; those of faces are added by their names."""

ASPECTS = ("face", "hair", "top", "lower", "shoes_accessories", "body")
"""The aspects of VLM-Appearance."""

GIVEN_PARTS = ("aesthetics", "smoothness", "amplitude", "gme", "natural")
"""OpenS2V's parts that are taken as they are given."""

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Metric:
    """A number of one clip. `better` is empty where neither way is: such a number is shown and never compared."""

    name: str
    better: Better
    meaning: str


def catalogue(faces: str = "", judge: bool = False) -> list[Metric]:
    """All metrics in the order of the tables.

    Args:
        faces: name of the face model, which is part of its metrics' names; empty without one.
        judge: whether a vision-language model is used.
    """
    found = [
        Metric("clip_i", "higher", "CLIP: cosine of the whole frame to the whole reference, mean of the frames"),
        Metric("clip_i_person", "higher", "the same of the person, cut out on white"),
        Metric("clip_t", "higher", "CLIP: cosine of the frame to the prompts, mean of the frames"),
        Metric("dino_i", "higher", "DINO: cosine of the whole frame to the whole reference, mean of the frames"),
        Metric("dino_i_person", "higher", "the same of the person, cut out on white"),
        *_face_metrics(faces),
        Metric(
            "drift_slope",
            "",
            "DINO: change of the similarity to the reference per second; below 0 it is lost, a still clip has 0",
        ),
        *(Metric(f"consistency_{gap}", "", f"DINO: cosine of frames {gap} apart; a still clip has 1") for gap in GAPS),
        Metric("subject_consistency", "", "VBench's formula on these DINO features; a still clip has 1"),
        Metric("motion", "", "mean optical flow in diagonals per second"),
        Metric("motion_ratio", "", "motion over that of the base's clip of the item"),
        Metric("motion_matched", "higher", "share of clips whose motion ratio is between 0.5 and 2"),
        *(
            Metric(
                matched(name), "" if name == "opens2v_face" else "higher", f"{name} where the motion is matched, else 0"
            )
            for name in IDENTITY
        ),
        *([Metric(matched(f"face_{faces}_all"), "higher", "the same of all frames' faces")] if faces else []),
        Metric("copy_frame", "lower", "largest correlation of a frame's pixels with the reference's"),
        Metric("copy_background", "lower", "DINO: cosine of what is around the person to that of the reference"),
        *(_judge_metrics() if judge else []),
        Metric(
            "nexus",
            "",
            "OpenS2V's NexusScore by its published rule, one box a frame: divided by the number of hits twice",
        ),
        Metric("nexus_mean", "higher", "NexusScore as a mean of the hits"),
        Metric("opens2v_face", "", "OpenS2V's FaceSim of --parts: frames without a face and zeros are left out"),
        *(Metric(f"opens2v_{part}", "", f"OpenS2V's {part} of --parts") for part in GIVEN_PARTS),
        Metric("opens2v_total", "", "OpenS2V's weighted sum of a system's means of its parts; nothing without one"),
    ]
    return found


def matched(name: str) -> str:
    """The name of a similarity at matched motion."""
    return f"{name}_matched"


def better_side(name: str) -> Better:
    """Which way of a metric is better; "higher" of names that are not in the catalogue, as those of faces are not."""
    known = {metric.name: metric.better for metric in catalogue(judge=True)}
    return known.get(name, "higher")


def _face_metrics(faces: str) -> list[Metric]:
    if not faces:
        return []
    return [
        Metric(f"face_{faces}", "higher", "similarity of the faces found to the reference's, mean of those frames"),
        Metric(f"face_{faces}_found", "higher", "share of frames with a face"),
        Metric(f"face_{faces}_all", "higher", "the same similarity, a frame without a face counts 0"),
    ]


def _judge_metrics() -> list[Metric]:
    return [
        Metric("vlm_appearance", "higher", "VLM-Appearance: mean of the aspects that are visible, 0 to 10"),
        *(Metric(f"vlm_{aspect}", "higher", f"VLM-Appearance: {aspect}, 0 to 10") for aspect in ASPECTS),
        Metric("vlm_order_gap", "", "VLM-Appearance: mean difference between the two orders of the frames"),
        Metric("vlm_valid", "", "VLM-Appearance: share of answers of the requested form; the others are ignored"),
    ]
