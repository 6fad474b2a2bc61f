"""The interface between the training loop and a part of the model: the protocol Part, and the context to build one.

A part lives in training/parts/<name>.py and is listed in training/parts/__init__.py. Its module defines

- `class Settings(PartSettings)` with `name: Literal["<name>"] = "<name>"` and its own fields, with defaults where any
  value can be right for everyone;
- `class <Name>Part`, built as `<Name>Part(settings, context)`, which follows the protocol Part.

The loop owns the optimizer, the EMA, the checkpoints, the log and the clock; the part owns the networks, the data and
the loss.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from training.randomness import rank_seed, torch_generator
from training.shares import Shares


class PartSettings(BaseModel):
    """Base of every part's Settings: unknown keys and infinite numbers are refused, values are fixed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str


@dataclass(frozen=True)
class PartContext:
    """The context that a part is built in.

    seed: the run's seed; initial weights are drawn from torch's global generator, which the loop has seeded by then.
    device: where the loss runs. The loop moves `modules()` there; a part moves its frozen networks itself.
    init_from: weights file to start from (`init.from`), None for a fresh start. Also set on a resume,
    where the checkpoint's tensors then replace the file's.
    rank, world: this process and how many train together; a part that shares out its data takes its slice by them.
    shares: where the network is sharded (FSDP2): a part that makes use of it builds its network on the meta device, and
    is an `ExportsStored`; another one builds it whole, in every process.
    accumulate: how many batches a step of the optimizer takes (`optim.accumulate`).
    """

    seed: int
    device: torch.device
    init_from: Path | None = None
    rank: int = 0
    world: int = 1
    shares: Shares | None = None
    accumulate: int = 1

    def step_of(self, number: int) -> int:
        """The optimizer's step of a batch of the run: what settings that count steps are compared with."""
        return number // self.accumulate

    @property
    def own_seed(self) -> int:
        """The seed of a part whose processes draw their batches independently: `batch` is then per process."""
        return rank_seed(self.seed, self.rank)

    def common_generator(self, step: int, purpose: str) -> torch.Generator | None:
        """A generator with equal state in all processes at a step, for common decisions; None in a single process."""
        return torch_generator(self.seed, step, purpose) if self.world > 1 else None


class ParameterGroup(TypedDict):
    """One optimizer group.

    lr_scale multiplies the run's learning rate; weight_decay replaces the run's; muon asks for Muon where the run's
    optimizer is that (tensors of two or more dimensions that are hidden layers' weights).
    """

    params: list[nn.Parameter]
    lr_scale: NotRequired[float]
    weight_decay: NotRequired[float]
    muon: NotRequired[bool]


Metrics = dict[str, float | Tensor]


class Part(Protocol):
    """A part of the model as the loop sees it."""

    def modules(self) -> dict[str, nn.Module]:
        """Return what is trained, by name: the optimizer, the EMA and the checkpoints cover exactly these.

        Frozen helpers (a VAE that only encodes, a text encoder) are not listed. The names prefix the tensors in a
        checkpoint.
        """
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the optimizer groups; `default_groups(self.modules())` is the usual answer.

        Parameters left out stay fixed.
        """
        ...

    def batch(self, step: int) -> Any:
        """Return the batch of one step, on the CPU: a function of (seed, step) and of nothing else.

        With `optim.accumulate` step numbers the batches of the run, here and in `loss`; see `PartContext.step_of`.

        Runs ahead of time in a worker process (`run.workers`): a fork of the trainer on Linux, or where several train
        together a new one, which gets the part by pickle without its networks and without what is on a GPU. It must not
        read or write weights, touch the GPU, or keep state between calls. Draws come from `training.randomness` with
        the seed, the step and a purpose. Tensors inside dicts, lists and tuples travel by shared memory and are moved
        to the device by the loop; return uint8 pictures where you can, and convert them in `loss`.
        """
        ...

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss per sample, shape (B,), and the terms to log (floats, or tensors, which are averaged).

        Called under autocast when `precision` is bf16. generator is a CPU generator of (seed, step): draw there, then
        move. The loop averages the losses of the batch and calls backward.
        """
        ...

    def sample(self, step: int, folder: Path) -> None:
        """Write samples of the current state, pictures (PNG) or clips (GIF), into folder, which exists.

        Called without gradients, modules in eval mode, EMA weights in place. Its random draws do not
        change the training.
        """
        ...

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the shipped fp16 file or files into folder, which exists. EMA weights are in place.

        record (name, part, steps, samples, seed, config_hash) belongs into the files' metadata; it is JSON data, the
        same for the same weights.
        """
        ...


@runtime_checkable
class HashesData(Protocol):
    """A part whose data can change while its configuration does not."""

    def data_hash(self) -> str:
        """Return a hash of the data and its order; a resume with another hash is refused."""
        ...


@runtime_checkable
class OpensData(Protocol):
    """A part whose data take long to open or are generated first; an export does not need them."""

    def open_data(self) -> None:
        """Open what `batch` reads. Called once before the first step, before any worker process is there."""
        ...


@runtime_checkable
class HasBuckets(Protocol):
    """A part whose batches depend on the number of processes by more than a factor."""

    def batches_by_bucket(self) -> dict[str, int]:
        """Return how many clips a batch has, of all processes together, by bucket."""
        ...


NOTHING_HELD_OUT = (
    "None of the held-out rows can be read: run training/cache.py with part.data.split=val again, or leave out "
    "run.validate_every."
)


@runtime_checkable
class Validates(Protocol):
    """A part with data that it does not train on (`run.validate_every`)."""

    def validation_batches(self) -> Iterable[Any]:
        """Return the same batches, on the CPU, at every call: at least one; None for one that cannot be read.

        As many in every process, which decide together about each. The first is read before the run's first step. A
        part keeps its data open between calls.

        Raises:
            InputError: there are none.
        """
        ...

    def validation_loss(self, batch: Any, sigma: float, generator: torch.Generator) -> Metrics:
        """Return the terms of the loss at one noise level; the noise comes from the generator, nothing is dropped.

        Called without gradients, modules in eval mode, with the current weights.
        """
        ...


@runtime_checkable
class Thaws(Protocol):
    """A part that trains some of its parameters from a later step on."""

    def frozen(self, step: int) -> list[nn.Parameter]:
        """Return the parameters that a step does not train: no update, no weight decay, no optimizer state."""
        ...


@runtime_checkable
class KeepsStart(Protocol):
    """A part that never trains some of the parameters of `init.from`."""

    def kept(self) -> list[nn.Parameter]:
        """Return the parameters that never change: checkpoints leave them out, and `init.from` restores them."""
        ...


@runtime_checkable
class NeedsWhole(Protocol):
    """A part whose settings may exclude that processes share its network out (FSDP2, DeepSpeed)."""

    def needs_whole(self) -> str | None:
        """Return the setting that does, as `key is value`; None where they may."""
        ...


@runtime_checkable
class ExportsIn(Protocol):
    """A part whose files can be written in other dtypes than fp16 (`export.py --dtype`)."""

    def export_in(self, folder: Path, record: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Write as `Part.export` does, in a dtype."""
        ...


@runtime_checkable
class ExportsStored(Protocol):
    """A part whose network is too large for one process."""

    def export_stored(self, folder: Path, record: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
        """Write what `Part.export` does, from a checkpoint's tensors, with one of them in memory at a time.

        stored: float32, by `<module>.<name>`; the average of what has one.
        """
        ...


class Work(NamedTuple):
    """The work of a step: tokens of all clips and references, and the model's FLOPs; None if they are unknown."""

    tokens: int
    flops: int | None


@runtime_checkable
class CountsWork(Protocol):
    """A part that can count the work of a batch, for the log."""

    def work(self, batch: Any, *, with_reference: bool) -> Work:
        """Return the work of a batch whose references were used or dropped."""
        ...


_SHAPED_VECTORS = (".gamma", ".modulation")  # gains of the VAE's norms (C, 1, 1), modulations of blocks (1, 6, dim)


def default_groups(
    modules: Mapping[str, nn.Module], lr_scale: float = 1.0, hidden: Callable[[str], bool] | None = None
) -> list[ParameterGroup]:
    """Split the trainable parameters: matrices and kernels with weight decay; norms, biases and modulations without.

    hidden: whether a name (`<module>.<parameter>`) is a hidden layer's weight, for Muon.
    """
    named = {p: f"{name}.{key}" for name, module in modules.items() for key, p in module.named_parameters()}
    trained = [p for p in named if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and not named[p].endswith(_SHAPED_VECTORS)]
    inner = [p for p in decayed if hidden is not None and hidden(named[p])]
    muon, with_decay = {id(p) for p in inner}, {id(p) for p in decayed}
    groups: list[ParameterGroup] = [
        {"params": inner, "lr_scale": lr_scale, "muon": True},
        {"params": [p for p in decayed if id(p) not in muon], "lr_scale": lr_scale},
        {"params": [p for p in trained if id(p) not in with_decay], "lr_scale": lr_scale, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scaled_groups(groups: Iterable[ParameterGroup], scales: Mapping[nn.Parameter, float]) -> list[ParameterGroup]:
    """Split groups by the factors of some parameters' learning rate; the others keep their group's."""
    split: list[ParameterGroup] = []
    for group in groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        for scale, params in by_scale.items():
            split.append({**group, "params": params, "lr_scale": scale * group.get("lr_scale", 1.0)})
    return split
