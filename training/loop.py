"""The run: from a configuration to exported weights, with exact resume, in one process or in each of several."""

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import CheckpointError, InputError
from training.config import TrainConfig, changed_keys, load_config, save_config
from training.distributed import World, open_world
from training.parts.base import HashesData, OpensData, Part, Validates
from training.prefetch import batches
from training.randomness import rank_seed
from training.speed import Speedometer
from training.state import Checkpoint, CheckpointStore, only_trainer
from training.stopping import Stop, TrainingStopped, save_asked
from training.trainer import Trainer, build_trainer
from training.watch import Watch

_LOG = logging.getLogger(__name__)
MAX_SKIPPED_IN_A_ROW = 10


def train(config: TrainConfig) -> int | None:
    """Train, or go on training, in the run's folder. Returns the signal that ended it early, else None.

    Raises:
        InputError: the folder belongs to another configuration or to a process that is running.
        CheckpointError: no checkpoint in the folder can be read.
        TrainingStopped: ten steps in a row were not finite, or the first of several processes could not save.
    """
    stop = Stop(config.run.max_minutes)
    folder = _make_folder(config.run.folder)
    with open_world() as world, logging_redirect_tqdm(), only_trainer(folder) if world.first else nullcontext():
        store = CheckpointStore(folder / "checkpoints", config.run.keep_last)
        checkpoint = store.load_latest()
        if world.first:
            if checkpoint is not None:
                refuse_changes(folder, config)
            save_config(config, folder / "config.yaml")
            _describe_world(world, checkpoint)
        trainer = build_trainer(config, checkpoint, world)
        if world.first:
            _refuse_other_data(folder, trainer.part, resumed=checkpoint is not None)
            _describe_start(trainer, folder)
        if trainer.progress.step < config.run.steps:
            _open_data(trainer)
        with stop.listening():
            ended_by = _run(trainer, store, folder, stop)
            if ended_by is None:
                _export(trainer, store, folder / "export")
            elif world.first:
                _LOG.info("Saved at step %d; the same command goes on from there.", trainer.progress.step)
    return ended_by


def refuse_changes(folder: Path, config: TrainConfig) -> None:
    """Compare with the run's own config.yaml. Raises InputError that names the keys that must not change."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise CheckpointError(f"{folder} has checkpoints but no config.yaml: choose another run.out.")
    changed = changed_keys(load_config(saved), config)
    if changed:
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): set them back to resume it, or choose "
            "another run.out."
        )


def _run(trainer: Trainer, store: CheckpointStore, folder: Path, stop: Stop) -> int | None:
    """Do what is left of the steps. Returns the signal that ended them, else None."""
    run, progress, world = trainer.config.run, trainer.progress, trainer.world
    if progress.step >= run.steps:
        return None
    parts = trainer.config.optim.accumulate
    draws = range(progress.step * parts, run.steps * parts)
    pin_memory = world.device.type == "cuda"
    seed = rank_seed(run.seed, world.rank)
    stream = batches(trainer.part, seed, draws, workers=run.workers, pin_memory=pin_memory)
    speed = Speedometer(trainer.part, world.device, bf16=trainer.config.precision == "bf16", processes=world.size)
    with Watch(trainer.config, folder, progress.step, active=world.first) as watch:
        while True:
            watch.step(_timed_step(trainer, stream, speed))
            if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise TrainingStopped(
                    f"Stopped at step {progress.step}: {MAX_SKIPPED_IN_A_ROW} steps in a row were not finite. The last "
                    "checkpoint is whole; a lower optim.lr or clip_norm in another run.out may help."
                )
            due = progress.step % run.save_every == 0 or progress.step == run.steps
            if due:  # before the validation, which may fail
                _save(trainer, store)
            if run.validate_every is not None and progress.step % run.validate_every == 0:
                found = trainer.validate(stop.asked)
                if found is not None:
                    watch.validation(found, progress.step)
            out_of_time, save = world.any(stop.asked(), world.first and save_asked(folder))
            ended_by = stop.agreed(world)
            last = out_of_time or ended_by is not None or progress.step == run.steps
            if (last or save) and not due:
                _save(trainer, store)
            if ended_by is None and (last or progress.step % run.sample_every == 0):
                _sample(trainer, folder / "samples", watch, stop)
            if last:
                return ended_by


def _open_data(trainer: Trainer) -> None:
    """Have the part open its data, and its first held-out batch: what is wrong with them is said before the first step.

    That may take hours, in which a signal ends the process at once, as there is nothing to save.
    """
    part, name = trainer.part, trainer.config.part.name
    if isinstance(part, OpensData):
        part.open_data()
    if trainer.config.run.validate_every is None:
        return
    if not isinstance(part, Validates):
        raise InputError(f"run.validate_every: the part {name} has no held-out data; leave it out.")
    next(iter(part.validation_batches()))


def _timed_step(trainer: Trainer, stream: Iterator[Any], speed: Speedometer) -> dict[str, Any]:
    progress, began = trainer.progress, time.monotonic()
    taken = list(islice(stream, trainer.config.optim.accumulate))
    waited = time.monotonic() - began
    samples = progress.samples
    record = trainer.step(*taken)
    seconds = time.monotonic() - began
    progress.seconds += seconds
    return {
        **record,
        **speed.describe(taken, record, progress.samples - samples, seconds),
        "data_wait": round(waited, 4),
        "seconds": round(seconds, 4),
    }


def _save(trainer: Trainer, store: CheckpointStore) -> None:
    """Write a checkpoint, in the first process; none goes on before it is written."""
    tensors, failed = trainer.tensors(), None
    if trainer.world.first:
        try:
            store.save(trainer.progress, tensors)
        except OSError as error:
            failed = error
    everywhere = trainer.world.any(failed is not None)[0]
    if failed is not None:
        raise failed
    if everywhere:
        raise TrainingStopped("The first process could not write a checkpoint; the one before is whole.")


def _sample(trainer: Trainer, folder: Path, watch: Watch, stop: Stop) -> None:
    if trainer.world.first and not trainer.world.sharded:  # a share of a network shows nothing; export.py gives all
        with stop.may_cut():
            watch.samples(trainer.sample(folder), trainer.progress.step - 1)
    trainer.world.wait()


def _export(trainer: Trainer, store: CheckpointStore, folder: Path) -> None:
    world = trainer.world
    if world.first:
        if world.sharded:
            trainer = build_trainer(trainer.config, store.load_latest(optimizer=False), world.alone())
        trainer.export(folder)
        _LOG.info("Exported to %s.", folder)
    world.wait()


def _describe_world(world: World, checkpoint: Checkpoint | None) -> None:
    if checkpoint is not None and checkpoint.progress.world != world.size:
        _LOG.warning(
            "The run was saved by %d processes and goes on with %d at step %d: from here on it is not bit for bit "
            "what it would have been.",
            checkpoint.progress.world,
            world.size,
            checkpoint.progress.step,
        )


def _describe_start(trainer: Trainer, folder: Path) -> None:
    config, step = trainer.config, trainer.progress.step
    size = sum(parameter.numel() for parameter in trainer.trained.values())
    shared = f" in {trainer.world.size} processes" if trainer.world.size > 1 else ""
    place = f"{folder} on {trainer.device.type}{shared}, {size / 1e6:.2f} M trained parameters"
    if step >= config.run.steps:
        _LOG.info("%s is at step %d of %d already; raise run.steps to train on.", folder, step, config.run.steps)
    else:
        _LOG.info("%s %s, from step %d to %d", "Resuming" if step else "Training in", place, step, config.run.steps)


def _refuse_other_data(folder: Path, part: Part, *, resumed: bool) -> None:
    """Keep the hash of the data beside a new run, and compare it where a run goes on."""
    if not isinstance(part, HashesData):
        return
    path = folder / "data.sha256"
    if resumed and path.is_file() and path.read_text(encoding="utf-8").strip() != part.data_hash():
        raise InputError(
            f"{folder} holds a run on other data: put the data back to resume it, or choose another run.out."
        )
    write_text(path, part.data_hash() + "\n")


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.out {folder} cannot be made: {error.strerror}.") from None
    return folder
