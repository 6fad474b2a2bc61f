"""How well each metric follows a truth that is known: on clips of the world whose attributes are changed one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm

from contextanyone_core.encoders.image import ImageEncoder
from contextanyone_core.encoders.reference import clip_picture
from contextanyone_core.media.image_io import picture_to_images
from evaluation.metrics.copying import pixel_correlation
from evaluation.metrics.motion import flow_lengths
from evaluation.metrics.person import cut_out
from evaluation.metrics.similarity import slope, to_reference
from training.evaluation.accuracy import confidence
from training.world import ATTRIBUTES, FRAMES_PER_SECOND, Character, draw_shot, render_clip, sample

Frames = NDArray[np.uint8]
Features = NDArray[np.float32]

FRAMES, SIZE = 9, (128, 128)


class Encoder(Protocol):
    """What turns pictures into features of length 1; `evaluation.metrics.backbones.Backbone` is one."""

    def pictures(self, frames: Sequence[Frames]) -> Features:
        """Features of pictures (H, W, 3) uint8: (N, D)."""


class MiniatureTower:
    """The mean token of the miniature's CLIP tower, which was trained on this world: not the CLIP of any paper."""

    def __init__(self, tower: ImageEncoder) -> None:
        self._tower = tower

    def pictures(self, frames: Sequence[Frames]) -> Features:
        """As `Encoder`."""
        found = []
        for frame in frames:
            picture = clip_picture(picture_to_images(frame), self._tower.image_size)
            tokens = self._tower.encode(picture)[0].mean(0)
            found.append((tokens / tokens.norm()).cpu().numpy())
        return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Step:
    """A clip whose person differs from the reference's in `changed` attributes: video and masks of every frame."""

    changed: int
    video: Frames
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Ladder:
    """A reference (H, W, 3) with its mask, and clips of one scene from the same person to one with nothing in common.

    Attributes:
        joints: (T, 14, 2), of the first clip, in pixels.
    """

    reference: Frames
    mask: NDArray[np.bool_]
    steps: list[Step]
    joints: NDArray[np.float32]


def ladder(seed: int) -> Ladder:
    """The ladder of a test character: the attributes change in an order drawn from the seed."""
    drawn = sample(seed, 1, SIZE)
    rng = np.random.default_rng([seed, 7])
    shot = draw_shot(drawn.scene, rng)
    times, steps, person = np.arange(FRAMES, dtype=np.float64), [], drawn.character
    order = [str(name) for name in rng.permutation(list(ATTRIBUTES))]
    clips = [render_clip(person, shot, times, SIZE)]
    for name in order:
        person = _changed(person, name, rng)
        clips.append(render_clip(person, shot, times, SIZE))
    steps = [Step(changed, clip.video, clip.masks > 127) for changed, clip in enumerate(clips)]
    return Ladder(drawn.reference, drawn.reference_mask > 127, steps, clips[0].keypoints)


Rows = dict[str, dict[str, Any]]
"""{metric, with its backbone: mean rank correlation with its 95 % interval, and what it is correlated with}."""


def correlations(ladders: Sequence[Ladder], encoders: Mapping[str, Encoder | None]) -> Rows:
    """Spearman's correlation of each metric with the truth.

    Similarities, within a character over its nine clips, with the number of attributes that are the reference's; the
    mean over characters. `drift_slope`, likewise, of clips whose second half shows the changed person, with the number
    that is kept. `motion`, over all characters' clips, with the joints' mean speed.

    Args:
        encoders: by name; None is reported as not run.
    """
    rows: Rows = {}
    for name, encoder in encoders.items():
        if encoder is None:
            for metric in ("whole frame", "person on white", "drift_slope"):
                rows[f"{metric}, {name}"] = {"not run": True}
            continue
        of_ladder: dict[str, Callable[[Ladder], Sequence[float]]] = {
            "whole frame": partial(_similarities, encoder, person=False),
            "person on white": partial(_similarities, encoder, person=True),
            "drift_slope": partial(_drifts, encoder),
        }
        rows |= {f"{metric}, {name}": _within(f"{metric}, {name}", ladders, one) for metric, one in of_ladder.items()}
    rows["copy_frame"] = _within(
        "copy_frame", ladders, lambda one: [pixel_correlation(step.video, one.reference) for step in one.steps]
    )
    rows["motion"] = _motion(ladders)
    return rows


def table(rows: Rows, count: int) -> str:
    """The correlations as Markdown."""
    lines = [
        "| metric | rank correlation with the truth (95 % interval over characters) | the truth |",
        "|---|---|---|",
    ]
    for name, row in rows.items():
        if "not run" in row:
            lines.append(f"| {name} | not run | |")
        else:
            lines.append(f"| {name} | {row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['truth']} |")
    lines += ["", f"{count} test characters, for each a clip with 0 to 8 attributes changed.", ""]
    return "\n".join(lines)


def _within(name: str, ladders: Sequence[Ladder], measured: Callable[[Ladder], Sequence[float]]) -> dict[str, Any]:
    """A metric's row; the name is shown with its progress."""
    shown = tqdm(ladders, desc=name, unit="character", file=sys.stderr, dynamic_ncols=True)
    found = [_rank([-step.changed for step in one.steps], measured(one)) for one in shown]
    low, high = confidence(np.asarray(found))
    truth = "attributes as in the reference"
    return {"mean": float(np.mean(found)), "low": low, "high": high, "truth": truth, "characters": found}


def _motion(ladders: Sequence[Ladder]) -> dict[str, Any]:
    speeds = np.asarray([np.linalg.norm(np.diff(one.joints, axis=0), axis=-1).mean() for one in ladders])
    flows = np.asarray([flow_lengths(one.steps[0].video).mean() for one in ladders])
    rng, count = np.random.default_rng(0), len(ladders)
    drawn = [rng.integers(count, size=count) for _ in range(2000)]
    low, high = np.percentile([_rank(speeds[rows], flows[rows]) for rows in drawn], [2.5, 97.5])
    truth = "mean speed of the joints"
    return {"mean": _rank(speeds, flows), "low": float(low), "high": float(high), "truth": truth}


def _similarities(encoder: Encoder, one: Ladder, *, person: bool) -> list[float]:
    def view(frame: Frames, mask: NDArray[np.bool_]) -> Frames:
        found = cut_out(frame, mask) if person else frame
        assert found is not None
        return found

    wanted = encoder.pictures([view(one.reference, one.mask)])
    means = []
    for step in one.steps:
        pictures = [view(frame, mask) for frame, mask in zip(step.video, step.masks, strict=True)]
        means.append(float(to_reference(encoder.pictures(pictures), wanted).mean()))
    return means


def _drifts(encoder: Encoder, one: Ladder) -> list[float]:
    wanted, seconds = encoder.pictures([one.reference]), np.arange(FRAMES) / FRAMES_PER_SECOND
    half = encoder.pictures(list(one.steps[0].video[: FRAMES // 2]))
    found = []
    for step in one.steps:
        features = np.concatenate([half, encoder.pictures(list(step.video[FRAMES // 2 :]))])
        fitted = slope(to_reference(features, wanted), seconds)
        assert fitted is not None
        found.append(fitted)
    return found


def _changed(person: Character, name: str, rng: np.random.Generator) -> Character:
    others = [value for value in ATTRIBUTES[name] if value != getattr(person, name)]
    return replace(person, **{name: str(rng.choice(others))})


def _rank(truth: Sequence[float] | NDArray[Any], measured: Sequence[float] | NDArray[Any]) -> float:
    """Spearman's correlation; 0 where all measures are equal."""
    if np.ptp(measured) == 0 or np.ptp(truth) == 0:
        return 0.0
    return float(spearmanr(truth, measured).statistic)
