"""Clips of the shipped model under one condition, measured batch by batch; each batch is computed once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from tqdm import tqdm

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import ContextAnyonePipeline, GenerationSettings, stack_conditions
from contextanyone_core.media.image_io import frames_to_images, images_to_frames, picture_to_images
from contextanyone_core.prompts import TwoStagePrompt
from training.evaluation.accuracy import attributes_right, confidence
from training.evaluation.models import Models
from training.evaluation.motion import mean_flow
from training.evaluation.probe import Probe, Reading, read_clips
from training.world import WorldSample, neutral_prompts, sample

Picture = NDArray[np.uint8]
Clip = NDArray[np.uint8]
Numbers = dict[str, Any]
"""Measures of one clip; a list of one number for each attribute under `by_attribute`."""

_VERSION = 1
"""Counts changes of what is measured, or of how a case is made; cached batches of other versions are not used."""
_SCENE = ("action", "place", "light")


@dataclass(frozen=True)
class Case:
    """What the model is given for one test character, and what is true of it.

    Attributes:
        drawn: the rendered clip of the prompted scene and the character's picture elsewhere.
        picture: (H, W, 3), what the model is shown of it.
        asked: whether the prompt names action, place and light.
    """

    seed: int
    drawn: WorldSample
    picture: Picture
    prompt: TwoStagePrompt
    asked: bool = True


def plain_case(seed: int, settings: GenerationSettings) -> Case:
    """The case of training and of `training/evaluate.py`: the whole picture, prompts that name no attribute."""
    drawn = sample(seed, settings.num_frames, settings.size)
    return Case(seed, drawn, drawn.reference, TwoStagePrompt(*neutral_prompts(drawn.scene)))


@dataclass(frozen=True)
class Cell:
    """One condition.

    Attributes:
        kind: names how cases are made and judged; cells of one kind and the same settings share their clips.
        judge: further measures of a clip: of its case, the clip (T, H, W, 3) and the joints (T, 14, 2) in [-1, 1].
        rendered: the clips are the renderings through the VAE, the most that the model can reach.
    """

    kind: str
    title: str
    generation: GenerationSettings
    case: Callable[[int, GenerationSettings], Case] = plain_case
    judge: Callable[[Case, Clip, NDArray[np.float32]], Numbers] | None = None
    rendered: bool = False


class Studio:
    """Makes and measures the clips of cells.

    Args:
        models: the model and the classifier.
        folder: of the cache: one JSON file for each batch of clips.
    """

    def __init__(self, models: Models, folder: Path, batch_size: int) -> None:
        if not isinstance(models.pipeline, ContextAnyonePipeline):
            raise InputError("model is vace; the knobs and cases are those of models that run on our transformer.")
        self._pipeline, self._probe = models.pipeline, models.probe
        self._dtype = str(models.pipeline.dtype)
        self._folder, self._batch_size = folder, batch_size
        self.hashes = models.hashes()

    def measure(self, cell: Cell, seeds: Sequence[int]) -> list[Numbers]:
        """The measures of a clip for each test seed, in order.

        Raises:
            InputError: the model made pixels that are not numbers.
            OSError: the cache cannot be written.
        """
        found: list[Numbers] = []
        batches = [seeds[start : start + self._batch_size] for start in range(0, len(seeds), self._batch_size)]
        for batch in tqdm(batches, desc=f"{cell.kind}: {cell.title}"[:60], unit="batch", disable=None):
            path = self._folder / f"{cell.kind}-{batch[0]}-{self._hash(cell, batch)}.json"
            if not path.is_file():
                write_text(path, json.dumps(self._measured(cell, batch), allow_nan=False) + "\n")
            found += json.loads(path.read_text(encoding="utf-8"))
        return found

    def _hash(self, cell: Cell, seeds: Sequence[int]) -> str:
        gap = self._pipeline.config.gap if cell.generation.gap is None else cell.generation.gap
        settings = asdict(replace(cell.generation, gap=gap))
        known = [_VERSION, cell.kind, settings, list(seeds), self.hashes, self._dtype]
        text = json.dumps(known, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _measured(self, cell: Cell, seeds: Sequence[int]) -> list[Numbers]:
        cases = [cell.case(seed, cell.generation) for seed in seeds]
        clips = self._renderings(cases) if cell.rendered else self._clips(cases, cell.generation)
        reading = read_clips(self._probe, torch.from_numpy(clips))
        measured = []
        for index, case in enumerate(cases):
            numbers = _of_clip(case, clips[index], _one(reading, index), self._probe)
            if cell.judge is not None:
                numbers |= cell.judge(case, clips[index], reading.points[index].numpy())
            measured.append(numbers)
        return measured

    def _renderings(self, cases: Sequence[Case]) -> Clip:
        vae = self._pipeline.vae
        images = [frames_to_images(case.drawn.video).to(vae.device, vae.dtype) for case in cases]
        return np.stack([images_to_frames(vae.decode(vae.encode(one)).cpu()) for one in images])

    def _clips(self, cases: Sequence[Case], settings: GenerationSettings) -> Clip:
        pipeline, conditions = self._pipeline, []
        for case in cases:
            picture = picture_to_images(case.picture).to(pipeline.device)
            encoded = pipeline.dual_encoder.encode(picture, settings.size)
            conditions.append(pipeline.conditions([encoded], case.prompt))
        noise = pipeline.noise([case.seed for case in cases], settings)
        latents = pipeline.sample_latents(stack_conditions(conditions), settings, noise)
        if not bool(torch.isfinite(latents).all()):
            raise InputError(f"{settings} gives latents that are not finite numbers; try --set dtype=float32.")
        return np.stack([images_to_frames(images) for images in pipeline.decode(latents)])


def summarise(measured: Sequence[Numbers], name: str) -> dict[str, float] | None:
    """Mean, 95 % interval over characters and their number, in percent but for `motion`; None where none has it."""
    values = np.asarray([numbers[name] for numbers in measured if numbers.get(name) is not None], np.float64)
    if not len(values):
        return None
    scale = 1.0 if name == "motion" else 100.0
    low, high = confidence(scale * values)
    return {"mean": scale * float(values.mean()), "low": low, "high": high, "n": len(values)}


def summarise_shares(measured: Sequence[Numbers], name: str) -> dict[str, float] | None:
    """As `summarise`, of a measure that is 0 or 1: Wilson's interval, which is not a point where all are alike."""
    values = [numbers[name] for numbers in measured if numbers.get(name) is not None]
    if not values:
        return None
    found = binomtest(round(sum(values)), len(values)).proportion_ci(method="wilson")
    return {"mean": 100 * sum(values) / len(values), "low": 100 * found.low, "high": 100 * found.high, "n": len(values)}


def as_text(found: Mapping[str, float] | None, digits: int = 1) -> str:
    """A mean with its interval, or a dash."""
    if found is None:
        return "-"
    return f"{found['mean']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _one(reading: Reading, index: int) -> Reading:
    part = slice(index, index + 1)
    action = None if reading.action is None else reading.action[part]
    return Reading({name: values[part] for name, values in reading.frames.items()}, action, reading.points[part])


def _of_clip(case: Case, clip: Clip, reading: Reading, probe: Probe) -> Numbers:
    labels = np.asarray(case.drawn.character.labels(), np.int64)
    right = attributes_right(reading, labels[None])[0]  # (frames, attributes)
    scene = dict(zip(_SCENE, case.drawn.scene.labels(), strict=True))
    pictured = case.drawn.reference_scene.labels()[1]
    truth = read_clips(probe, torch.from_numpy(case.drawn.video[None])).points[0].numpy()
    flow = mean_flow(case.drawn.video, truth)
    followed = [float((reading.frames[name].numpy() == scene[name]).mean()) for name in ("place", "light")]
    if reading.action is not None:
        followed.append(float(int(reading.action[0]) == scene["action"]))
    return {
        "attributes": float(right.mean()),
        "by_attribute": right.mean(0).tolist(),
        "copied": float((reading.frames["place"].numpy() == pictured).mean()),
        "motion": mean_flow(clip, reading.points[0].numpy()) / max(flow, 1e-6),
        "prompt": float(np.mean(followed)) if case.asked else None,
    }
