"""A part with its optimizer, EMA and progress: what a checkpoint holds, and how one step changes it."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, autocast, nn

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import CheckpointError, ContextAnyoneError, InputError, ShapeError
from contextanyone_core.weights.writer import OnDemand
from training.config import TrainConfig, config_hash
from training.distributed import World, copy_stored, evaluating, full, joint_loss, one_process, reshard, shard
from training.ema import Ema
from training.files import file_sha256
from training.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer, set_learning_rate
from training.parts import PARTS
from training.parts.base import (
    NOTHING_HELD_OUT,
    ExportsIn,
    ExportsStored,
    HashesData,
    KeepsStart,
    NeedsWhole,
    Part,
    PartContext,
    Thaws,
    Validates,
)
from training.prefetch import to_device
from training.randomness import rank_seed, seed_globals, torch_generator
from training.shares import Shares
from training.state import Checkpoint, Progress
from training.terms import BatchResult, Logged, Sums, means, read_step, sums_of, terms_of
from training.zero.shares import ZeroShares

_LOG = logging.getLogger(__name__)
VALIDATION_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Trainer:
    """A part with its optimizer, EMA and progress, in a single process or in each of several."""

    def __init__(self, config: TrainConfig, part: Part, world: World, shares: Shares | None = None) -> None:
        self.config = config
        self.part = part
        self.world = world
        self.device = world.device
        self.modules = part.modules()
        for module in () if world.sharded else self.modules.values():
            module.to(self.device)
        self.stores_shares = shares is not None and shares.used
        self._choose_trained()
        kept = {id(parameter) for parameter in part.kept()} if isinstance(part, KeepsStart) else set()
        self._kept = {name for name, parameter in _named_parameters(self.modules).items() if id(parameter) in kept}
        if world.sharded:
            shard(self.modules, world, shares, bf16=config.precision == "bf16")
        self.trained = {name: p for name, p in _named_parameters(self.modules).items() if p.requires_grad}
        self.optimizer = make_optimizer(part.parameter_groups(), config.optim)
        self.ema = Ema(self.trained, config.optim.ema_decay)
        self.progress = Progress(world=world.size)
        self._bf16 = config.precision == "bf16"
        self._zero = ZeroShares(part, self.optimizer, self.trained, world, bf16=self._bf16) if world.zero else None
        self._loss = self._zero.loss if self._zero else joint_loss(part, world)
        self._stepped = self._zero.pieces if self._zero else self.trained
        self._seed = rank_seed(config.run.seed, world.rank)
        self.before_update: Callable[[], None] = lambda: None

    def _choose_trained(self) -> None:
        chosen = {id(parameter) for group in self.part.parameter_groups() for parameter in group["params"]}
        named = _named_parameters(self.modules)
        for parameter in named.values():
            parameter.requires_grad_(id(parameter) in chosen)
        if len(chosen) != sum(parameter.requires_grad for parameter in named.values()):
            name = self.config.part.name
            raise ValueError(f"Part {name}: parameter_groups() holds parameters that modules() does not.")

    @property
    def leaves_out(self) -> bool:
        """Whether checkpoints leave out tensors that `init.from` has."""
        return bool(self._kept)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the content of a checkpoint, by file; of a sharded network this process's shards.

        All processes must call it; of a network that is not sharded the first one's result counts. The tensors are the
        present ones: `step` changes them after `before_update`.
        """
        self.ema.put_back()
        reshard(self.modules)
        zero = self._zero
        optimizer = zero.whole_state(self.optimizer) if zero else optimizer_tensors(self.optimizer, self.trained)
        own = _named_parameters(self.modules)  # a buffer is copied here: a forward pass may change it
        model = {name: tensor if name in own else tensor.clone() for name, tensor in self._saved().items()}
        return {"model": model, "ema": dict(self.ema.tensors), "optimizer": optimizer}

    def _saved(self) -> dict[str, Tensor]:
        """The modules' tensors that a checkpoint holds: all but those that stay as in `init.from`."""
        return {name: tensor for name, tensor in _named_tensors(self.modules).items() if name not in self._kept}

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint. The optimizer's state may be missing, as an export does not need it.

        Raises:
            CheckpointError: its tensors are not this part's.
        """
        copy_stored(self._saved(), checkpoint.tensors["model"], f"{checkpoint.folder}, model")
        copy_stored(self.ema.tensors, checkpoint.tensors["ema"], f"{checkpoint.folder}, ema")
        optimizer: Mapping[str, Tensor] = checkpoint.tensors.get("optimizer", {})
        if self._zero:
            self._zero.refresh()
            optimizer = self._zero.own_state(optimizer)
        restore_optimizer(self.optimizer, self._stepped, optimizer)
        self.progress = replace(checkpoint.progress, world=self.world.size, skipped_in_a_row=0)
        self.ema.updates = checkpoint.progress.ema_updates

    def step(self, *batches: Any) -> dict[str, Any]:
        """Train one step on its batches (`optim.accumulate`) and return its record for log.jsonl.

        A step that is not finite, in any process, changes no weight in any. The device is waited for once, before the
        update: that is where the host learns of all numbers of the step.
        """
        self.ema.put_back()
        config, step = self.config, self.progress.step
        rate = learning_rate(config.optim, step, config.run.steps)
        set_learning_rate(self.optimizer, rate)
        frozen = self._freeze(step)
        count = len(batches)
        results = [self._backward(batch, step * count + index, index, count) for index, batch in enumerate(batches)]
        sums, norm = read_step(results, self._norm(frozen))
        finite = math.isfinite(norm) and all(math.isfinite(each["loss"][0]) for each in sums)
        own_ids = [] if finite else _names(batches, "ids")
        everywhere = self.world.gather(Logged(sums, finite, own_ids, len(_names(batches, "unreadable"))))
        finite = all(one.finite for one in everywhere)
        self._update(finite=finite)
        ids = [name for one in everywhere for name in one.ids]
        self._count(sum(result.samples for result in results), finite, ids)
        terms = means([sums for one in everywhere for sums in one.sums])
        with_reference = ["reference" in result.terms for result in results]
        occasional = {
            "unreadable": sum(one.unreadable for one in everywhere),
            "with_reference": with_reference if len(set(with_reference)) > 1 else [],
            "skipped": not finite,
            "ids": ids,
        }
        happened = {key: value for key, value in occasional.items() if value}
        return {"step": step, **terms, "lr": rate, "grad_norm": norm if finite else math.nan, **happened}

    def _update(self, *, finite: bool) -> None:
        """Step the optimizer and the EMA where loss and gradients are finite in all processes."""
        self.before_update()
        if finite:
            self.optimizer.step()
        if self._zero:
            self._zero.end_step(changed=finite)
        if finite:
            self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _freeze(self, step: int) -> set[str]:
        """Freeze the parameters that a step does not train; returns their names. FSDP computes their gradients."""
        if not isinstance(self.part, Thaws):
            return set()
        frozen = {id(parameter) for parameter in self.part.frozen(step)}
        names = {name for name, parameter in self.trained.items() if id(parameter) in frozen}
        for name, parameter in () if self.world.sharded else self.trained.items():
            parameter.requires_grad_(name not in names)
        return names

    def sample(self, folder: Path) -> Path:
        """Let the part write samples with the EMA weights into a folder of this step, which is returned.

        On a GPU in the precision of the training steps. All processes of a sharded network must call it.
        """
        target = folder / f"step-{self.progress.step:08d}"
        target.mkdir(parents=True, exist_ok=True)
        # A VAE's convolutions under autocast have crashed on CPUs; blocks that are gathered in bf16 need it.
        low = self._bf16 and (self.device.type == "cuda" or self.world.sharded)
        with self.shown(), autocast(self.device.type, torch.bfloat16, enabled=low):
            self.part.sample(self.progress.step, target)
        return target

    def validate(self, asked: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The loss on held-out data at fixed noise levels, with the current weights: `video`, and by level.

        The noise is the same at every call, and the random draws of the training do not change. In several processes
        each takes its share of the batches; one that any of them cannot read is left out, whoever has it.

        Args:
            asked: whether to stop, called before every batch; if one process stops, all do, and return None.

        Raises:
            CheckpointError: no batch can be read.
        """
        found: list[Sums] = []
        if not isinstance(self.part, Validates):
            raise TypeError(f"The part {self.config.part.name} has no held-out data.")
        with torch.no_grad(), evaluating(self.modules):
            for index, batch in enumerate(self.part.validation_batches()):
                ended, unreadable = self.world.any(asked(), batch is None)
                if ended:
                    return None
                if unreadable or (index % self.world.size != self.world.rank and not self.world.sharded):
                    continue
                for sigma in VALIDATION_SIGMAS:
                    generator = torch_generator(self.config.run.seed, index, f"validation {sigma}")
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                        terms = sums_of(self.part.validation_loss(to_device(batch, self.device), sigma, generator))
                    found.append(terms | {f"video_at_{sigma}": terms["video"]})
        everywhere = [sums for theirs in self.world.gather(found) for sums in theirs]
        if not everywhere:
            raise CheckpointError(NOTHING_HELD_OUT)
        return means(everywhere)

    def export(self, folder: Path, dtype: torch.dtype | None = None, *, ema: bool = True) -> None:
        """Write the shipped files and record.json into folder: by default the EMA weights in fp16.

        Raises:
            InputError: the part is written in fp16 only, and another dtype is asked for.
        """
        folder.mkdir(parents=True, exist_ok=True)
        record = run_record(self.config, self.progress, self.part) | ({} if ema else {"ema": False})
        with self.shown(ema=ema):
            if dtype is None:
                self.part.export(folder, record)
            elif isinstance(self.part, ExportsIn):
                self.part.export_in(folder, record, dtype)
            else:
                raise InputError(f"--dtype: the part {self.config.part.name} is written in fp16 only; leave it out.")
        self._write_record(folder, record)

    def export_stored(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Write what `export` does from a checkpoint of this network, of which one tensor at a time is in memory."""
        if not isinstance(self.part, ExportsStored):
            raise TypeError(f"The part {self.config.part.name} cannot export what is not in memory.")
        folder.mkdir(parents=True, exist_ok=True)
        record = run_record(self.config, self.progress, self.part)
        model, ema = checkpoint.tensors["model"], checkpoint.tensors["ema"]
        self.part.export_stored(folder, record, OnDemand((*model, *ema), lambda n: (ema if n in ema else model)[n]))
        self._write_record(folder, record)

    def _write_record(self, folder: Path, record: dict[str, Any]) -> None:
        clock = {"seconds": round(self.progress.seconds, 3)}  # not in the weights' files: equal weights are equal bytes
        write_text(folder / "record.json", json.dumps(record | clock, indent=1) + "\n")

    @contextmanager
    def shown(self, *, ema: bool = True) -> Iterator[None]:
        """EMA weights in place, modules in eval mode, no gradients."""
        with torch.no_grad(), self.ema.in_place() if ema else nullcontext(), evaluating(self.modules):
            yield

    def _backward(self, batch: Any, draw: int, index: int, batches: int) -> BatchResult:
        """Forward and backward pass of one batch.

        Args:
            draw: its number among all batches of the run.
            index, batches: its number among the batches of this step, and how many these are.
        """
        seed_globals(self._seed, draw, "loss")
        generator = torch_generator(self._seed, draw, "loss")
        with autocast(self.device.type, torch.bfloat16, enabled=self._bf16 and not self._zero):
            losses, metrics = self._loss(to_device(batch, self.device), draw, generator)
        if losses.ndim != 1:
            raise ShapeError(f"Part {self.config.part.name}: loss has shape {tuple(losses.shape)}; it must be (B,).")
        loss, count = losses.float().mean(), losses.shape[0]
        (samples,) = self.world.total(count)
        weighted = loss * (count * self.world.size / (samples * batches))  # every sample of all processes counts alike
        if self._zero:
            self._zero.backward(weighted, last=index == batches - 1)
        elif weighted.requires_grad:  # else no trained parameter was used
            weighted.backward()
        reshard(self.modules)
        return BatchResult(loss.detach(), terms_of(metrics), count, int(samples))

    def _norm(self, frozen: set[str]) -> Tensor:
        """The norm of all gradients together, but those of frozen parameters; they are clipped to `optim.clip_norm`."""
        for name in frozen & self._stepped.keys():
            self._stepped[name].grad = None
        with_gradient = [parameter for parameter in self._stepped.values() if parameter.grad is not None]
        norm = full(torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None]))
        if self._zero:
            norm = torch.tensor(math.sqrt(self.world.total(norm.item() ** 2)[0]), device=self.device)
        torch.nn.utils.clip_grads_with_norm_(with_gradient, self.config.optim.clip_norm, norm)
        return norm

    def _count(self, samples: int, finite: bool, names: Sequence[str]) -> None:
        progress = self.progress
        progress.step += 1
        progress.samples += samples
        progress.ema_updates = self.ema.updates
        progress.skipped += not finite
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        if not finite and self.world.first:
            named = f" Its samples: {', '.join(names)}." if names else ""
            _LOG.warning("Step %d skipped: loss or gradients are not finite.%s", progress.step - 1, named)


def _refuse_shares(config: TrainConfig, part: Part, world: World) -> None:
    """Refuse settings that need whole tensors where FSDP2 or DeepSpeed shares them out."""
    if not (world.sharded or world.zero):
        return
    found = None if config.optim.optimizer == "adamw" else f"optim.optimizer is {config.optim.optimizer}"
    if found is None and isinstance(part, NeedsWhole):
        found = part.needs_whole()
    if found is not None:
        by = "FSDP" if world.sharded else "DeepSpeed"
        raise InputError(f"{found}, which needs whole matrices: {by} holds shares of them.")


def build_trainer(config: TrainConfig, checkpoint: Checkpoint | None, world: World | None = None) -> Trainer:
    """Build the part and restore the checkpoint if there is one; without a world, for this process alone."""
    world = world or one_process()
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    seed_globals(config.run.seed, 0, "init")
    init_from = config.init.from_  # also on a resume: a part may read a tokenizer or sizes from it
    if init_from is not None and not init_from.is_file():
        raise InputError(f"init.from is {init_from}, which is not a file.")
    shares, accumulate = world.shares(), config.optim.accumulate
    context = PartContext(config.run.seed, world.device, init_from, world.rank, world.size, shares, accumulate)
    trainer = Trainer(config, _build_part(config, context, world), world, shares)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    if trainer.leaves_out and world.first and init_from is not None:
        _refuse_other_start(trainer.progress, init_from)
    return trainer


def _build_part(config: TrainConfig, context: PartContext, world: World) -> Part:
    """Build the part; of processes that read shares of a file, all end if one finds it damaged.

    Raises:
        InputError: its settings need whole tensors, and the processes share them out.
    """
    try:
        part = PARTS[config.part.name].build(config.part, context)
    except ContextAnyoneError as error:
        if world.sharded:
            world.gather(str(error))
        raise
    _refuse_shares(config, part, world)  # the same in all processes
    if found := [message for message in world.gather(None) if message is not None] if world.sharded else []:
        raise CheckpointError(found[0])
    return part


def _refuse_other_start(progress: Progress, start: Path) -> None:
    """Record the hash of `init.from`, whose tensors the checkpoints lack; compare it when a run is resumed."""
    found = file_sha256(start)
    if progress.start not in (None, found):
        raise InputError(
            f"init.from is {start}, whose content is not what the run started from (SHA-256 {progress.start}): its "
            "checkpoints hold only what is trained beside that; put the file back, or choose another run.out."
        )
    progress.start = found


def run_record(config: TrainConfig, progress: Progress, part: Part) -> dict[str, Any]:
    """Return the metadata of exported weights: JSON data, equal for equal weights."""
    data: dict[str, Any] = {"data_hash": part.data_hash()} if isinstance(part, HashesData) else {}
    if len(progress.learning_rates) > 1:
        data["learning_rates"] = progress.learning_rates
    return data | {
        "name": config.run.name,
        "part": config.part.name,
        "steps": progress.step,
        "samples": progress.samples,
        "seed": config.run.seed,
        "config_hash": config_hash(config),
    }


def _names(batches: Sequence[Any], key: str) -> list[str]:
    """The samples that batches name: `ids` are in them, `unreadable` could not be read."""
    return [name for batch in batches if isinstance(batch, dict) for name in batch.get(key, ())]


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
