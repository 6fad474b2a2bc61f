"""All numbers of one clip against its item: features from the cache or computed, then arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contextanyone_core.prompts import TwoStagePrompt
from evaluation.clip_set import Item
from evaluation.metrics.backbones import Backbone
from evaluation.metrics.catalogue import GAPS
from evaluation.metrics.copying import background, pixel_correlation
from evaluation.metrics.faces import FaceModel, face_numbers
from evaluation.metrics.feature_cache import FeatureCache, Features
from evaluation.metrics.frames import Source, chosen, positions
from evaluation.metrics.motion import flow_lengths, per_second
from evaluation.metrics.person import MaskSource, cut_out
from evaluation.metrics.similarity import at_gap, slope, subject_consistency, to_reference
from evaluation.metrics.vlm import Judge, judged_numbers

Numbers = dict[str, float]
Pictures = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Instruments:
    """What clips are measured by; what is None is left out of the tables, never replaced."""

    cache: FeatureCache
    clip: Backbone | None = None
    dino: Backbone | None = None
    masks: MaskSource | None = None
    faces: FaceModel | None = None
    judge: Judge | None = None


@dataclass(frozen=True)
class Measured:
    """The numbers of a clip, and its similarity to the reference over time (of DINO)."""

    numbers: Numbers
    curve: list[tuple[float, float]]


def measure(with_: Instruments, item: Item, source: Source, reference: Source) -> Measured:
    """Measure one clip.

    Args:
        source: the clip; its frames are read only if a feature is not in the cache.
        reference: the item's reference picture as a still.

    Raises: InputError where a clip, a picture or a mask cannot be read.
    """
    numbers: Numbers = {}
    _motion(with_, source, numbers)
    _copies(with_, source, reference, numbers)
    if with_.clip is not None:
        _clip(with_, with_.clip, item, (source, reference), numbers)
    if with_.faces is not None:
        numbers.update(_faces(with_.cache, with_.faces, source, reference))
    if with_.judge is not None:
        numbers.update(judged_numbers(with_.judge.ask(source, reference)))
    curve = [] if with_.dino is None else _dino(with_, with_.dino, (source, reference), numbers)
    return Measured(numbers, curve)


def _motion(with_: Instruments, source: Source, numbers: Numbers) -> None:
    lengths = with_.cache.get(("flow", source.digest), lambda: flow_lengths(source.frames))
    numbers["motion"] = per_second(lengths, source.rate)


def _copies(with_: Instruments, source: Source, reference: Source, numbers: Numbers) -> None:
    found = with_.cache.get(
        ("copy", source.digest, reference.digest),
        lambda: np.asarray([pixel_correlation(chosen(source), reference.frames[0])], np.float32),
    )
    numbers["copy_frame"] = float(found[0])


def _clip(with_: Instruments, clip: Backbone, item: Item, clips: tuple[Source, Source], numbers: Numbers) -> None:
    source, reference = clips
    frames = _whole(with_.cache, clip, source)
    numbers["clip_i"] = float(to_reference(frames, _whole(with_.cache, clip, reference)[:1]).mean())
    text = TwoStagePrompt(item.first, item.later).video_text
    encoded = with_.cache.get(("text", *clip.key, text), lambda: clip.text(text))
    numbers["clip_t"] = float(to_reference(frames, encoded).mean())
    if with_.masks is not None:
        _add(numbers, "clip_i_person", _of_views(with_.cache, clip, with_.masks, clips, "person"))


def _dino(
    with_: Instruments, dino: Backbone, clips: tuple[Source, Source], numbers: Numbers
) -> list[tuple[float, float]]:
    source, reference = clips
    every = _every(with_.cache, dino, source)
    taken = positions(len(every))
    similarities = to_reference(every[taken], _every(with_.cache, dino, reference)[:1])
    seconds = taken / source.rate
    numbers["dino_i"] = float(similarities.mean())
    _add(numbers, "drift_slope", slope(similarities, seconds))
    for gap in GAPS:
        _add(numbers, f"consistency_{gap}", at_gap(every, gap))
    _add(numbers, "subject_consistency", subject_consistency(every))
    if with_.masks is not None:
        _add(numbers, "dino_i_person", _of_views(with_.cache, dino, with_.masks, clips, "person"))
        _add(numbers, "copy_background", _of_views(with_.cache, dino, with_.masks, clips, "background"))
    return [(float(second), float(value)) for second, value in zip(seconds, similarities, strict=True)]


def _faces(cache: FeatureCache, model: FaceModel, source: Source, reference: Source) -> Numbers:
    """The numbers of faces; none where the reference shows no face."""

    def described(of: Source, view: str) -> Features:
        def compute() -> Features:
            frames = [of.frames[0]] if view == "first" else list(chosen(of))
            found = [model.describe(frame) for frame in frames]
            size = next((len(face) for face in found if face is not None), 1)
            return np.stack([np.full(size, np.nan, np.float32) if face is None else face for face in found])

        return cache.get(("face", view, model.name, model.revision, of.digest), compute)

    wanted = described(reference, "first")[0]
    if np.isnan(wanted).any():
        return {}
    faces = described(source, "chosen")
    return face_numbers(
        model.name, [None if np.isnan(face).any() else model.similarity(face, wanted) for face in faces]
    )


def _whole(cache: FeatureCache, backbone: Backbone, source: Source) -> Features:
    """Features of the chosen frames."""
    return cache.get(("chosen", *backbone.key, source.digest), lambda: backbone.pictures(list(chosen(source))))


def _every(cache: FeatureCache, backbone: Backbone, source: Source) -> Features:
    """Features of all frames, which gaps in time need."""
    return cache.get(("every", *backbone.key, source.digest), lambda: backbone.pictures(list(source.frames)))


def _of_views(
    cache: FeatureCache, backbone: Backbone, masks: MaskSource, clips: tuple[Source, Source], view: str
) -> float | None:
    """Mean cosine of frames that have the view to the reference's; None where either has none."""

    def features(source: Source) -> Features:
        def compute() -> Features:
            pictures = _views(source, masks, view)
            return backbone.pictures(pictures) if pictures else np.zeros((0, 1), np.float32)

        return cache.get((view, *backbone.key, source.digest, masks.key(source)), compute)

    found, wanted = (features(source) for source in clips)
    return float(to_reference(found, wanted[:1]).mean()) if len(found) and len(wanted) else None


def _views(source: Source, masks: MaskSource, view: str) -> Pictures:
    make = {"person": cut_out, "background": background}[view]
    made = [make(frame, mask) for frame, mask in zip(chosen(source), masks.masks(source), strict=True)]
    return [picture for picture in made if picture is not None]


def _add(numbers: Numbers, name: str, value: float | None) -> None:
    if value is not None:
        numbers[name] = value
