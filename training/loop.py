"""The training loop: one process, one device, exact resume."""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from contextanyone_core.errors import CheckpointError, ContextAnyoneError, InputError, ShapeError
from training.config import TrainConfig, changed_keys, config_hash, load_config, save_config
from training.ema import Ema
from training.log import ProgressDisplay, StepLog
from training.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer, set_learning_rate
from training.parts import PARTS
from training.parts.base import HashesData, Part, PartContext
from training.prefetch import batches, to_device
from training.randomness import seed_globals, torch_generator
from training.speed import Speedometer
from training.state import Checkpoint, CheckpointStore, Progress, only_trainer
from training.trackers import Trackers

_LOG = logging.getLogger(__name__)
MAX_SKIPPED_IN_A_ROW = 10


class TrainingStopped(ContextAnyoneError):  # noqa: N818  # an outcome, not a fault of the program
    """The loss or its gradients were not finite for ten steps in a row."""


class Stop:
    """Signals asked for and the time that is allowed. A second Ctrl-C does not wait for the step to end."""

    def __init__(self, max_minutes: float | None) -> None:
        self.signal: int | None = None
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def asked(self) -> bool:
        """Say whether the loop must end after the present step."""
        return self.signal is not None or (self._deadline is not None and time.monotonic() >= self._deadline)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM instead of dying of them."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number


class Trainer:
    """A part with its optimizer, EMA and progress: what a checkpoint holds, and how one step changes it."""

    def __init__(self, config: TrainConfig, part: Part, device: torch.device) -> None:
        self.config = config
        self.part = part
        self.device = device
        self.modules = part.modules()
        for module in self.modules.values():
            module.to(device)
        groups = part.parameter_groups()
        chosen = {id(parameter) for group in groups for parameter in group["params"]}
        for parameter in (p for module in self.modules.values() for p in module.parameters()):
            parameter.requires_grad_(id(parameter) in chosen)
        self.trained = {name: p for name, p in _named_parameters(self.modules).items() if p.requires_grad}
        if len(self.trained) != len(chosen):
            raise ValueError(f"Part {config.part.name}: parameter_groups() holds parameters that modules() does not.")
        self.optimizer = make_optimizer(groups, config.optim)
        self.ema = Ema(self.trained, config.optim.ema_decay)
        self.progress = Progress()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return everything a checkpoint holds, by file."""
        optimizer = optimizer_tensors(self.optimizer, self.trained)
        return {"model": _named_tensors(self.modules), "ema": self.ema.tensors, "optimizer": optimizer}

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint. Raises CheckpointError where its tensors are not this part's."""
        _copy_into(_named_tensors(self.modules), checkpoint.tensors["model"], f"{checkpoint.folder}, model")
        _copy_into(self.ema.tensors, checkpoint.tensors["ema"], f"{checkpoint.folder}, ema")
        restore_optimizer(self.optimizer, self.trained, checkpoint.tensors["optimizer"])
        self.progress = checkpoint.progress
        self.ema.updates = checkpoint.progress.ema_updates

    def step(self, batch: Any) -> dict[str, Any]:
        """Do one step and return what log.jsonl says of it. A step that is not finite changes no weight."""
        config, step = self.config, self.progress.step
        rate = learning_rate(config.optim, step, config.run.steps)
        set_learning_rate(self.optimizer, rate)
        seed_globals(config.run.seed, step, "loss")
        generator = torch_generator(config.run.seed, step, "loss")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses, metrics = self.part.loss(to_device(batch, self.device), step, generator)
        if losses.ndim != 1:
            raise ShapeError(f"Part {config.part.name}: loss has shape {tuple(losses.shape)}; it must be (B,).")
        loss = losses.float().mean()
        norm = self._gradients(loss)
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
            self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        names = batch["ids"] if isinstance(batch, dict) and "ids" in batch else []
        self._count(losses.shape[0], finite, names)
        terms = {k: v.float().mean().item() if isinstance(v, Tensor) else float(v) for k, v in metrics.items()}
        record = {"step": step, "loss": loss.item(), **terms, "lr": rate, "grad_norm": norm}
        return record if finite else {**record, "skipped": True, **({"ids": names} if names else {})}

    def sample(self, folder: Path) -> Path:
        """Let the part show its present state, with the EMA weights, into a folder of this step, which is returned."""
        target = folder / f"step-{self.progress.step:08d}"
        target.mkdir(parents=True, exist_ok=True)
        with self.shown():
            self.part.sample(self.progress.step, target)
        return target

    def export(self, folder: Path) -> None:
        """Write the shipped files and record.json into folder."""
        folder.mkdir(parents=True, exist_ok=True)
        record = run_record(self.config, self.progress, self.part)
        with self.shown():
            self.part.export(folder, record)
        (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """EMA weights in place, modules in eval mode, no gradients."""
        modes = {inner: inner.training for module in self.modules.values() for inner in module.modules()}
        with torch.no_grad(), self.ema.in_place():
            for module in self.modules.values():
                module.eval()
            yield
        for inner, mode in modes.items():
            inner.training = mode

    def _gradients(self, loss: Tensor) -> float:
        if not math.isfinite(loss.item()):
            return math.nan
        loss.backward()  # type: ignore[no-untyped-call]
        with_gradient = [parameter for parameter in self.trained.values() if parameter.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(with_gradient, self.config.optim.clip_norm)
        return norm.item()

    def _count(self, samples: int, finite: bool, names: Sequence[str]) -> None:
        progress = self.progress
        progress.step += 1
        progress.samples += samples
        progress.ema_updates = self.ema.updates
        progress.skipped += not finite
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        if not finite:
            named = f" Its samples: {', '.join(names)}." if names else ""
            _LOG.warning("Step %d skipped: loss or gradients are not finite.%s", progress.step - 1, named)


def train(config: TrainConfig) -> int | None:
    """Train, or go on training, in the run's folder. Returns the signal that ended it early, else None.

    Raises:
        InputError: the folder belongs to another configuration or to a process that is running.
        CheckpointError: no checkpoint in the folder can be read.
        TrainingStopped: ten steps in a row were not finite.
    """
    stop = Stop(config.run.max_minutes)
    folder = _make_folder(config.run.folder)
    with stop.listening(), logging_redirect_tqdm(), only_trainer(folder):
        store = CheckpointStore(folder / "checkpoints", config.run.keep_last)
        checkpoint = store.load_latest()
        if checkpoint is not None:
            refuse_changes(folder, config)
        save_config(config, folder / "config.yaml")
        trainer = build_trainer(config, checkpoint)
        _refuse_other_data(folder, trainer.part, resumed=checkpoint is not None)
        _describe_start(trainer, folder)
        _run(trainer, store, folder, stop)
        if stop.signal is None:
            trainer.export(folder / "export")
            _LOG.info("Exported to %s.", folder / "export")
        else:
            _LOG.info("Saved at step %d; the same command goes on from there.", trainer.progress.step)
    return stop.signal


def build_trainer(config: TrainConfig, checkpoint: Checkpoint | None) -> Trainer:
    """Build the part on the GPU, or the CPU where there is none, and take over the checkpoint if there is one."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_globals(config.run.seed, 0, "init")
    init_from = config.init.from_  # on a resume too: a part may take a tokenizer or sizes from it
    if init_from is not None and not init_from.is_file():
        raise InputError(f"init.from is {init_from}, which is not a file.")
    part = PARTS[config.part.name].build(config.part, PartContext(config.run.seed, device, init_from))
    trainer = Trainer(config, part, device)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer


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


def run_record(config: TrainConfig, progress: Progress, part: Part) -> dict[str, Any]:
    """Return what stands beside exported weights: JSON data."""
    data = {"data_hash": part.data_hash()} if isinstance(part, HashesData) else {}
    return data | {
        "name": config.run.name,
        "part": config.part.name,
        "steps": progress.step,
        "samples": progress.samples,
        "seconds": round(progress.seconds, 1),
        "seed": config.run.seed,
        "config_hash": config_hash(config),
    }


def _run(trainer: Trainer, store: CheckpointStore, folder: Path, stop: Stop) -> None:
    run, progress = trainer.config.run, trainer.progress
    remaining = range(progress.step, run.steps)
    if not remaining:
        return
    stream = batches(trainer.part, run.seed, remaining, workers=run.workers, pin_memory=trainer.device.type == "cuda")
    display = ProgressDisplay(run.name, progress.step, run.steps, run.log_every)
    speed = Speedometer(trainer.part, trainer.device, bf16=trainer.config.precision == "bf16")
    trackers = Trackers(run.trackers, folder, trainer.config.to_dict(), progress.step)
    with StepLog(folder / "log.jsonl") as log, trackers, display:
        for _ in remaining:
            record = _timed_step(trainer, stream, speed)
            log.write(record)
            trackers.step(record)
            display.advance(progress.step, record)
            if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise TrainingStopped(
                    f"Stopped at step {progress.step}: {MAX_SKIPPED_IN_A_ROW} steps in a row were not finite. The last "
                    "checkpoint is whole; a lower optim.lr or clip_norm in another run.out may help."
                )
            last = stop.asked() or progress.step == run.steps
            if last or progress.step % run.save_every == 0:
                store.save(progress, trainer.tensors())
            if stop.signal is None and (last or progress.step % run.sample_every == 0):
                trackers.samples(trainer.sample(folder / "samples"), step=record["step"])
            if last:
                break


def _timed_step(trainer: Trainer, stream: Iterator[Any], speed: Speedometer) -> dict[str, Any]:
    progress, began = trainer.progress, time.monotonic()
    batch = next(stream)
    waited = time.monotonic() - began
    samples = progress.samples
    record = trainer.step(batch)
    seconds = time.monotonic() - began
    progress.seconds += seconds
    return {
        **record,
        **speed.describe(batch, record, progress.samples - samples, seconds),
        "data_wait": round(waited, 4),
        "seconds": round(seconds, 4),
    }


def _describe_start(trainer: Trainer, folder: Path) -> None:
    config, step = trainer.config, trainer.progress.step
    size = sum(parameter.numel() for parameter in trainer.trained.values())
    place = f"{folder} on {trainer.device.type}, {size / 1e6:.2f} M trained parameters"
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
    path.write_text(part.data_hash() + "\n", encoding="utf-8")


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.out {folder} cannot be made: {error.strerror}.") from None
    return folder


def _named_parameters(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters by module and name; tied ones once, under their first name."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            found.setdefault(id(parameter), (f"{prefix}.{name}", parameter))
    return dict(found.values())


def _named_tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, tied ones once."""
    tensors: dict[str, Tensor] = {name: parameter.data for name, parameter in _named_parameters(modules).items()}
    for prefix, module in modules.items():
        persistent = module.state_dict().keys()
        tensors |= {f"{prefix}.{name}": buffer for name, buffer in module.named_buffers() if name in persistent}
    return tensors


def _copy_into(target: dict[str, Tensor], source: dict[str, Tensor], what: str) -> None:
    wrong = sorted(target.keys() ^ source.keys())
    wrong += sorted(n for n in target.keys() & source.keys() if target[n].shape != source[n].shape)
    if wrong:
        raise CheckpointError(f"{what}: {len(wrong)} tensors do not fit this part, such as {wrong[0]}.")
    for name, tensor in target.items():
        tensor.copy_(source[name])
