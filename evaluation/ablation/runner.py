"""Runs the missing cells of an ablation: estimates the cost, trains, measures, writes one file per cell and seed."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from contextanyone_core.atomic_file import write_text
from contextanyone_core.encoders.image import load_image_encoder
from contextanyone_core.encoders.text import load_text_encoder
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.errors import InputError
from contextanyone_core.runtime.processor import device_name
from contextanyone_core.shapes import VideoShape
from evaluation.ablation.fingerprint import agree, fingerprint
from evaluation.ablation.measure import Tools, measure
from evaluation.ablation.part import AblationPart, Settings
from evaluation.ablation.plan import AblationPlan, Job, described, job_hash
from training.config import TrainConfig, load_config
from training.distributed import one_process
from training.evaluation.probe import load_probe
from training.files import file_sha256
from training.loop import train
from training.parts.base import PartContext
from training.precision import settle_precision
from training.trainer import build_trainer

_LOG = logging.getLogger(__name__)
_TIMED_STEPS = 4
_WEIGHTS = ("vae", "text_encoder", "image_encoder", "probe")


class Runner:
    """The cells of a plan, with results in one folder and runs in another.

    Args:
        out: folder for one JSON file per cell and seed; these may be committed, and name no folder of the machine.
        work: folder for runs with checkpoints and weights; a cell's is removed once it is measured.
    """

    def __init__(self, plan: AblationPlan, out: Path, work: Path) -> None:
        self.plan, self.out, self.work = plan, out, work
        self._hashes: dict[str, str] = {}
        self._digests: dict[Path, str] = {}

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """Finished results by cell, in the order of the seeds."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.plan.cells}
        for job in self.plan.jobs():
            result = self._result(job)
            if result is not None:
                found[job.name].append(result)
        return found

    def run(self, only: Sequence[str], deadline: float | None) -> int | None:
        """Compute missing results; returns the signal that ended it early, if any.

        Args:
            only: names of cells; empty for all.
            deadline: time of `time.monotonic`; cells that would end after it are not started.

        Raises:
            InputError: there is no cell of a given name.
        """
        if unknown := sorted(set(only) - self.plan.cells.keys()):
            raise InputError(f"--cells names {', '.join(unknown)}; the cells are {', '.join(self.plan.cells)}.")
        missing = [job for job in self.plan.jobs() if (not only or job.name in only) and self._result(job) is None]
        if not missing:
            return None
        cost = self._cost(missing)
        for job in missing:
            if deadline is not None and time.monotonic() + cost > deadline:
                _LOG.info("%s seed %d would take %.0f minutes: not started.", job.name, job.seed, cost / 60)
                return None
            ended_by, seconds = self._train_and_measure(job)
            if ended_by is not None:
                return ended_by
            cost = seconds or cost
        return None

    def _train_and_measure(self, job: Job) -> tuple[int | None, float]:
        config = job.config(self.plan, self._folder(job))
        began = time.monotonic()
        _LOG.info("%s, seed %d: %s", job.name, job.seed, job.cell.title)
        ended_by = train(config)
        if ended_by is not None:
            return ended_by, 0.0
        settings, export = _settings(config), config.run.folder / "export"
        path = export / "transformer.safetensors"
        measured = measure(path, settings, self.plan.measuring, _tools(settings))
        result = {
            "cell": job.name,
            "seed": job.seed,
            "hash": self._hash(job),
            "fingerprint": fingerprint(settings),
            "config": described(config),
            "weights": self._frozen(settings),
            "samples": config.run.steps * settings.batch,
            "flops": _flops(config, settings),
            "seconds": _trained_seconds(export),
            "precision": load_config(config.run.folder / "config.yaml").precision,
            "processor": device_name(one_process().device),
            "measured": measured,
        }
        text = json.dumps(result, allow_nan=False) + "\n"
        write_text(self._path(job), text)
        kept = sum(measured["attributes"]) / len(measured["attributes"])
        _LOG.info("%s, seed %d: %.1f percent of the attributes kept.", job.name, job.seed, 100 * kept)
        shutil.rmtree(config.run.folder)
        return None, time.monotonic() - began

    def _cost(self, missing: Sequence[Job]) -> float:
        """Estimated seconds of one cell, measured on a few steps of the first; logged for all before training.

        They are steps of the trainer on the device that it trains on, which each wait for the one before.
        """
        job, world = missing[0], one_process()
        config = settle_precision(job.config(self.plan, self._folder(job)), world, None)
        trainer = build_trainer(config, None, world)
        part, settings, count = trainer.part, _settings(config), config.optim.accumulate
        assert isinstance(part, AblationPart)
        part.open_data()
        seconds = []
        for step in range(_TIMED_STEPS):
            batches = [part.batch(step * count + index) for index in range(count)]
            began = time.monotonic()
            trainer.step(*batches)
            seconds.append(time.monotonic() - began)
        cost = config.run.steps * min(seconds[1:])
        _LOG.info(
            "%d cells and seeds are missing. One trains for about %.0f minutes here (%.2e FLOPs), all for %.1f hours; "
            "measuring comes on top.",
            len(missing),
            cost / 60,
            _flops(config, settings, part) or 0,
            len(missing) * cost / 3600,
        )
        return cost

    def _result(self, job: Job) -> dict[str, Any] | None:
        path = self._path(job)
        if not path.is_file():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = _settings(job.config(self.plan, self._folder(job)))
        if not agree(fingerprint(settings), result["fingerprint"]):
            _LOG.warning("%s was computed by other code, and is computed again.", path.name)
            return None
        now = self._frozen(settings)
        if other := [f"{name}.safetensors" for name in _WEIGHTS if result["weights"].get(name) != now[name]]:
            _LOG.warning("%s was computed with another %s, and is computed again.", path.name, ", ".join(other))
            return None
        return result

    def _frozen(self, settings: Settings) -> dict[str, str]:
        """SHA-256 of the networks that encode, decode and read; each file is hashed once."""
        files = {name: settings.weights / f"{name}.safetensors" for name in _WEIGHTS}
        self._digests |= {path: file_sha256(path) for path in files.values() if path not in self._digests}
        return {name: self._digests[path] for name, path in files.items()}

    def _path(self, job: Job) -> Path:
        return self.out / f"{job.name}-{job.seed}-{self._hash(job)}.json"

    def _folder(self, job: Job) -> Path:
        return self.work / f"{job.name}-{job.seed}-{self._hash(job)}"

    def _hash(self, job: Job) -> str:
        config = job.config(self.plan, Path("unused"))
        settings = _settings(config)
        return job_hash(job, self.plan, self._data(settings))

    def _data(self, settings: Settings) -> str:
        """Hash of the pairs and the encoders, cached per folder of encoders."""
        key = f"{settings.weights}:{settings.pool_seed}"
        if key not in self._hashes:
            part = AblationPart(settings, PartContext(0, torch.device("cpu")))
            self._hashes[key] = part.data_hash()
        return self._hashes[key]


def _settings(config: TrainConfig) -> Settings:
    assert isinstance(config.part, Settings)
    return config.part


def _trained_seconds(export: Path) -> float:
    """Seconds in training steps, those before a resume included; of the record that the export writes."""
    record = json.loads((export / "record.json").read_text(encoding="utf-8"))
    return round(float(record["seconds"]), 1)


def _tools(settings: Settings) -> Tools:
    folder = settings.weights
    return Tools(
        VideoVAE(load_vae(folder / "vae.safetensors", torch.float32)),
        load_text_encoder(folder / "text_encoder.safetensors"),
        load_image_encoder(folder / "image_encoder.safetensors"),
        load_probe(folder / "probe.safetensors"),
    )


def _flops(config: TrainConfig, settings: Settings, part: AblationPart | None = None) -> float | None:
    """FLOPs of a cell's training with references in every batch, counted as the model's, joint attention too."""
    part = part or AblationPart(settings, PartContext(0, torch.device("cpu")))
    video = VideoShape(settings.num_frames, settings.size, settings.size)
    shapes = [shape.latents_shape(part.transformer.config, settings.batch) for shape in (video, video.picture)]
    batch: dict[str, torch.Tensor] = {
        name: torch.empty(shape, device="meta")
        for name, shape in zip(("latents", "reference_latents"), shapes, strict=True)
    }
    if part.transformer.config.image_dim is not None:
        batch["image_embeds"] = torch.empty((settings.batch, 17, 1), device="meta")
    flops = part.work(batch, with_reference=settings.variant != "text_only").flops
    return None if flops is None else float(flops * config.run.steps)
