"""The run: from a configuration to exported weights, with exact resume, in one process or in each of several."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import CheckpointError, InputError
from training.config import TrainConfig, changed_keys, load_config, save_config
from training.distributed import World, open_world
from training.optim import learning_rate
from training.parts.base import NOTHING_HELD_OUT, HasBuckets, HashesData, OpensData, Part, Validates
from training.precision import settle_precision
from training.prefetch import batches, start_method
from training.randomness import rank_seed
from training.saving import Saver
from training.speed import Speedometer
from training.state import Checkpoint, CheckpointStore, Progress, Writers, only_trainer
from training.stopping import Stop, TrainingStopped, naming_lost_processes, save_asked
from training.trainer import Trainer, build_trainer
from training.watch import Watch

_LOG = logging.getLogger(__name__)
MAX_SKIPPED_IN_A_ROW = 10
_HIGH = 0.5  # of the rate, for the stage that refines another


def train(config: TrainConfig) -> int | None:
    """Train, or go on training, in the run's folder. Returns the signal that ended it early, else None.

    Raises:
        InputError: the folder belongs to another configuration or to a process that is running.
        CheckpointError: no checkpoint in the folder can be read.
        TrainingStopped: ten steps in a row were not finite, or of several processes one is gone or could not save.
    """
    stop = Stop(config.run.max_minutes)
    folder = _make_folder(config.run.folder)
    with naming_lost_processes(), open_world() as world, ExitStack() as stack:
        stack.enter_context(logging_redirect_tqdm())
        if world.first:
            stack.enter_context(only_trainer(folder))
        store = CheckpointStore(folder / "checkpoints", config.run.keep_last)
        trainer = _build_or_resume(config, store, folder, world)
        if trainer.progress.step < config.run.steps:
            _open_data(trainer)
        with stop.listening():
            ended_by = _run(trainer, store, folder, stop)
            if ended_by is None:
                _export(trainer, store, folder / "export")
            elif world.first:
                _LOG.info("Saved at step %d; the same command resumes the run.", trainer.progress.step)
    return ended_by


def _build_or_resume(config: TrainConfig, store: CheckpointStore, folder: Path, world: World) -> Trainer:
    """Build the trainer, and restore the newest checkpoint if there is one.

    The checkpoint is released here: its files are mapped into memory and would stay on disk for as long as it lives.
    """
    checkpoint = store.load_latest(writers=Writers(world.rank, world.size, world.gather))
    config = settle_precision(config, world, None if checkpoint is None else folder / "config.yaml")
    if world.first:
        if checkpoint is not None:
            before = refuse_changes(folder, config)
            _note_rate(checkpoint.progress, before.optim.lr, config.optim.lr)
        _describe_world(world, checkpoint)
        _warn_of_stages(config)
    trainer = build_trainer(config, checkpoint, world)
    if world.first:
        trainer.progress.learning_rates.setdefault("0", config.optim.lr)
        _note_batches(trainer.progress, trainer.part)
        _refuse_other_data(folder, trainer.part, resumed=checkpoint is not None)
        save_config(config, folder / "config.yaml")  # nothing is refused any more: the export reads this
        _describe_start(trainer, folder)
    return trainer


def _note_rate(progress: Progress, before: float, now: float) -> None:
    """Record a changed learning rate in the progress, which every later checkpoint contains."""
    progress.learning_rates.setdefault("0", before)
    last = list(progress.learning_rates.values())[-1]
    if last != now:
        _LOG.warning("optim.lr is %g from step %d on; it was %g.", now, progress.step, last)
        progress.learning_rates[str(progress.step)] = now


def _warn_of_stages(config: TrainConfig) -> None:
    """Warn where the second stage of a personal model does not begin at a low rate, or `lr_factors` at another step."""
    stills, optim, steps = getattr(config.part, "stills_steps", None), config.optim, config.run.steps
    if stills is None or stills >= steps:
        return
    before, after = (learning_rate(optim, step, steps) / optim.lr for step in (stills - 1, stills))
    if after > _HIGH or (optim.lr_factors and stills not in optim.lr_factors):
        _LOG.warning(
            "part.stills_steps is %d and optim.lr_factors %s: pictures end at %.2g of optim.lr, clips begin at %.2g; "
            "the preset paper would have optim.lr_factors={%d: 0.3}.",
            *(stills, optim.lr_factors, before, after, stills),
        )


def _note_batches(progress: Progress, part: Part) -> None:
    """Record the batch of each bucket in the progress; say what was and what is where a resume changes it."""
    if not isinstance(part, HasBuckets):
        return
    before, now = progress.batches, part.batches_by_bucket()
    changed = [f"{bucket} {before[bucket]}, now {n}" for bucket, n in now.items() if before.get(bucket, n) != n]
    if changed:
        _LOG.warning(
            "From step %d on a step takes another number of clips, of all processes together: %s. The rows of the "
            "steps are drawn anew, and an epoch has another number of steps.",
            progress.step,
            "; ".join(changed),
        )
    progress.batches = now


def refuse_changes(folder: Path, config: TrainConfig) -> TrainConfig:
    """Compare with the run's own config.yaml, which is returned. Raises InputError that names what must not change."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise CheckpointError(f"{folder} has checkpoints but no config.yaml: choose another run.out.")
    before = load_config(saved)
    changed = changed_keys(before, config)
    if changed:
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): set them back to resume it, or choose "
            "another run.out (with personalize.py another --out)."
        )
    return before


def _run(trainer: Trainer, store: CheckpointStore, folder: Path, stop: Stop) -> int | None:
    """Train the remaining steps. Returns the signal that ended them, else None.

    What follows a step, in this order, which is a contract:

    1. The step is logged, before anything can fail.
    2. Ten steps in a row that were not finite end the run, without a checkpoint.
    3. A checkpoint that is due (`save_every`, the last step) is begun; a thread writes it while the run goes on. It is
       complete before a validation, samples or the end, so that an error in them does not lose it. One of `save_every`
       waits for a finite step: weights that gave others may have diverged, and would replace the good ones.
    4. A validation that is due. A signal or the time limit interrupts it.
    5. All processes agree whether the run ends at this step; signals during the validation count, and so does a
       checkpoint that could not be written.
    6. A checkpoint if the run ends or the file `save` requests one, unless 3 has written it: at most one per step.
    7. Samples that are due (`sample_every`, the last step, the time limit), unless a signal ends the run.
    """
    run, progress, world = trainer.config.run, trainer.progress, trainer.world
    if progress.step >= run.steps:
        return None
    accumulate = trainer.config.optim.accumulate
    draws = range(progress.step * accumulate, run.steps * accumulate)
    pin_memory = world.device.type == "cuda"
    seed = rank_seed(run.seed, world.rank)
    method = start_method(world.size)
    stream = batches(trainer.part, seed, draws, workers=run.workers, pin_memory=pin_memory, method=method)
    speed = Speedometer(trainer.part, world.device, bf16=trainer.config.precision == "bf16", processes=world.size)
    watch = Watch(trainer.config, folder, progress.step, active=world.first)
    with watch, Saver(store, world) as saver:
        trainer.before_update, due = saver.wait_for_copies, False
        while True:
            watch.step(_timed_step(trainer, stream, speed))
            if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                saver.finish()
                raise _diverged(progress, store)
            complete, due = progress.step == run.steps, due or progress.step % run.save_every == 0
            save_due = complete or (due and not progress.skipped_in_a_row)
            if save_due:
                due = False
                saver.start(progress, trainer.tensors())
            if run.validate_every is not None and progress.step % run.validate_every == 0:
                saver.finish()
                found = trainer.validate(stop.asked)
                if found is not None:
                    watch.validation(found, progress.step)
            out_of_time, save_wanted, failed = world.any(stop.asked(), world.first and save_asked(folder), saver.failed)
            if failed:
                saver.finish()
            ended_by = stop.agreed(world)
            last = complete or out_of_time or ended_by is not None
            if (last or save_wanted) and not save_due:
                saver.start(progress, trainer.tensors())
            if last:
                saver.finish()
            if ended_by is None and (last or progress.step % run.sample_every == 0):
                saver.finish()
                _sample(trainer, folder / "samples", watch, stop)
            if last:
                return ended_by


def _diverged(progress: Progress, store: CheckpointStore) -> TrainingStopped:
    """What ends a run whose steps are no longer finite, with what to do."""
    newest, before = max(store.names(), default=""), progress.step - progress.skipped_in_a_row
    same = f"; {newest} has the weights of these steps: remove it to resume the one before"
    return TrainingStopped(
        f"Stopped at step {progress.step}: {progress.skipped_in_a_row} steps in a row were not finite. Resume the last "
        "checkpoint with a lower optim.lr, or start anew with another clip_norm"
        f"{same if newest >= f'step-{before:08d}' else ''}."
    )


def _open_data(trainer: Trainer) -> None:
    """Open the part's data and its first held-out batch, so that an error in them comes before the first step.

    This may take hours. A signal in that time ends the process at once: there is nothing to save.
    """
    part, name = trainer.part, trainer.config.part.name
    if isinstance(part, OpensData):
        part.open_data()
    if trainer.config.run.validate_every is None:
        return
    if not isinstance(part, Validates):
        raise InputError(f"run.validate_every: the part {name} has no held-out data; leave it out.")
    if all(batch is None for batch in part.validation_batches()):  # the first that can be read ends this
        raise CheckpointError(NOTHING_HELD_OUT)


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


def _sample(trainer: Trainer, folder: Path, watch: Watch, stop: Stop) -> None:
    step, world = trainer.progress.step, trainer.world
    if world.sharded:  # its processes compute every sample together, so a signal to one waits for the end
        with TemporaryDirectory() as aside:
            watch.samples(trainer.sample(folder if world.first else Path(aside)), step - 1)
    elif world.first:
        with stop.may_cut():
            watch.samples(trainer.sample(folder), step - 1)
    world.wait()


def _export(trainer: Trainer, store: CheckpointStore, folder: Path) -> None:
    world = trainer.world
    if world.first:
        checkpoint = store.load_latest(optimizer=False) if world.sharded else None
        if checkpoint is not None and trainer.stores_shares:
            trainer.export_stored(folder, checkpoint)
        elif checkpoint is not None:
            build_trainer(trainer.config, checkpoint, world.alone()).export(folder)
        else:
            trainer.export(folder)
        _LOG.info("Exported to %s.", folder)
    world.wait()


def _describe_world(world: World, checkpoint: Checkpoint | None) -> None:
    if checkpoint is not None and checkpoint.progress.world != world.size:
        _LOG.warning(
            "The run was saved by %d processes and goes on with %d at step %d: from here on the result "
            "is not bit for bit the same, and a part without buckets has as many batches in a step as processes.",
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
    """Write the hash of the data into a new run's folder; compare it when a run is resumed."""
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
