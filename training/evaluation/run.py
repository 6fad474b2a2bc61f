"""One evaluation from settings to numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from contextanyone_core.encoders.vae import VideoVAE, load_vae
from training.evaluation.accuracy import attributes_right, chance, confidence, drift, scene_accuracy, summary
from training.evaluation.characters import Subject, first_seed, neighbour, subjects
from training.evaluation.clips import ClipMaker, Clips, Maker, make_maker
from training.evaluation.fidelity import psnr, reconstruction_psnr, vae_round_trip
from training.evaluation.models import Models
from training.evaluation.motion import mean_flow, motion_ratio
from training.evaluation.poses import measure_poses
from training.evaluation.probe import Probe, Reading, join_readings, read_clips
from training.evaluation.probe_check import check_probe
from training.evaluation.settings import EvaluateSettings
from training.world import ATTRIBUTES

_LOG = logging.getLogger(__name__)
SHOWN = 8
"""How many characters the contact sheet shows."""


@dataclass
class Outcome:
    """The numbers, as they go into metrics.json, and the first clips of every variant for the contact sheet."""

    metrics: dict[str, Any]
    chosen: list[Subject]
    shown: dict[str, Clips] = field(default_factory=dict)


def evaluate(models: Models, settings: EvaluateSettings, seed: int, count: int) -> Outcome:
    """Measure everything on ``count`` test characters of ``seed``."""
    began = time.monotonic()
    clock: dict[str, float] = {}
    chosen = subjects(seed, count, settings.size, settings.num_frames)
    metrics: dict[str, Any] = {"seed": seed, "count": count}
    outcome = Outcome(metrics, chosen)
    with _timed(clock, "probe"):
        metrics["probe"] = check_probe(models.probe, first_seed(seed), settings.probe_frames, settings.size)
    metrics["chance"] = chance()
    rows: dict[str, Any] = {}
    with _timed(clock, "vae"):
        metrics["vae_psnr"], rows["vae_round_trip"] = _measure_vae(models, chosen[: settings.vae_clips])
    maker = make_maker(models.pipeline, settings)
    counts = settings.counts(count)
    with tqdm(total=sum(counts.values()), unit="clip", mininterval=1.0) as bar:
        for variant, number in counts.items():
            bar.set_description(variant)
            with _timed(clock, variant):
                reading, clips = _make_and_read(maker, models.probe, variant, chosen[:number], bar)
                outcome.shown[variant] = clips[:SHOWN]
                rows |= _rows(variant, reading, chosen[:number])
                if variant == next(iter(counts)):
                    metrics |= _scene_and_motion(reading, clips, chosen[:number], models.probe)
                if variant == "contradicting_prompt":
                    metrics["contradiction"] = _contradiction(reading, chosen[:number])
    if models.pose_reader is not None and isinstance(maker, ClipMaker):
        with _timed(clock, "poses"):
            metrics |= measure_poses(maker, models.pose_reader, models.probe, seed, settings.variants.posed(count))
            rows["pose_other_body"] = metrics["pose"]["other_body"].pop("attributes")
    metrics["attribute_accuracy"] = rows
    with _timed(clock, "reconstruction"):
        part = chosen[: settings.vae_clips]
        pictures = maker.reconstructions(part)
        metrics["reconstruction_psnr"] = reconstruction_psnr(pictures, part) if pictures else None
    metrics["seconds"] = {"total": round(time.monotonic() - began, 1), **clock}
    return outcome


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    clock[name] = round(time.monotonic() - began, 1)


def _labels(chosen: Sequence[Subject]) -> NDArray[np.int64]:
    return np.stack([subject.labels for subject in chosen])


def _scene_labels(chosen: Sequence[Subject]) -> NDArray[np.int64]:
    return np.stack([subject.scene_labels for subject in chosen])


def _read(probe: Probe, clips: Clips) -> Reading:
    return read_clips(probe, torch.from_numpy(clips))


def _measure_vae(models: Models, chosen: Sequence[Subject]) -> tuple[float, dict[str, Any]]:
    """Mean PSNR of test clips through the VAE, and what the probe reads off them: the most that a row can reach.

    In float32, for clips of any dtype: the number is the file's.
    """
    vae = VideoVAE(load_vae(models.files["vae"], torch.float32, models.pipeline.device))
    clips = np.stack([vae_round_trip(vae, subject) for subject in chosen])
    values = [psnr(clip, subject.drawn.video) for clip, subject in zip(clips, chosen, strict=True)]
    return float(np.mean(values)), summary(attributes_right(_read(models.probe, clips), _labels(chosen)))


def _make_and_read(
    maker: Maker, probe: Probe, variant: str, chosen: Sequence[Subject], bar: tqdm[Any]
) -> tuple[Reading, Clips]:
    readings, made = [], []
    for clips in maker.make(variant, chosen):
        readings.append(_read(probe, clips))
        made.append(clips)
        bar.update(len(clips))
    return join_readings(readings), np.concatenate(made)


def _rows(variant: str, reading: Reading, chosen: Sequence[Subject]) -> dict[str, Any]:
    rows = {variant: summary(attributes_right(reading, _labels(chosen)))}
    if variant == "shuffled_reference":
        shown = [neighbour(index, chosen) for index in range(len(chosen))]
        rows["shuffled_reference_own"] = summary(attributes_right(reading, _labels(shown)))
    return rows


def _scene_and_motion(reading: Reading, clips: Clips, chosen: Sequence[Subject], probe: Probe) -> dict[str, Any]:
    """Scene, drift and motion, measured where the reference is given, if the model reads any."""
    rendered = [_read(probe, subject.drawn.video[None]).points[0].numpy() for subject in chosen]
    flow = [mean_flow(clip, points.numpy()) for clip, points in zip(clips, reading.points, strict=True)]
    truth = [mean_flow(subject.drawn.video, points) for subject, points in zip(chosen, rendered, strict=True)]
    motion = motion_ratio(flow, truth, [subject.drawn.scene.action for subject in chosen])
    return {
        "scene_accuracy": scene_accuracy(reading, _scene_labels(chosen)),
        "drift": drift(attributes_right(reading, _labels(chosen))),
        "motion_ratio": motion["ratio"],
        "motion_ratio_by_action": motion["by_action"],
    }


def _contradiction(reading: Reading, chosen: Sequence[Subject]) -> dict[str, Any]:
    """Where prompt and picture disagree: how often the clip follows which, and how the other attributes fare."""
    names = list(ATTRIBUTES)
    named = np.stack([[name in subject.contradiction.named for name in names] for subject in chosen])
    claimed = np.stack([subject.contradiction.claimed for subject in chosen])
    picture, prompt = attributes_right(reading, _labels(chosen)), attributes_right(reading, claimed)
    followed = np.asarray([right[:, chosen_].mean() for right, chosen_ in zip(picture, named, strict=True)])
    return {
        "follows_picture": float(followed.mean()),
        "follows_picture_ci95": list(confidence(followed)),
        "follows_prompt": float(np.mean([r[:, c].mean() for r, c in zip(prompt, named, strict=True)])),
        "unnamed_attributes": float(np.mean([r[:, ~c].mean() for r, c in zip(picture, named, strict=True)])),
        "n": len(chosen),
    }
