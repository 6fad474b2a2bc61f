"""Several processes that train together, started by `accelerate launch` or `torchrun`: rank and size, collective
decisions, and the sharing of the network.

Every process holds the whole network (DDP), or a share of it where accelerate's configuration has `use_fsdp` (FSDP2;
HSDP where its parallelism_config has a dp_replicate_size), or a share of the optimizer where it has `use_deepspeed`
(ZeRO-1 and 2, training/zero/). A process that was started alone uses none of this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.model.blocks import TransformerBlock
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.parts.base import Metrics, Part
from training.shares import Shares, fill
from training.tensor_files import TensorFiles

_PATIENCE = timedelta(hours=2)  # how long the others wait while one saves, samples or exports
_PARALLEL = ("DP_REPLICATE", "DP_SHARD", "TP", "CP", "SP")  # of accelerate's parallelism_config
_ZERO = ("stage", "reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "reduce_scatter")  # of DeepSpeed's
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class World:
    """This process among those that train together (torch.distributed's rank and world size).

    Attributes:
        rank, size: its number, of how many processes. device: where its network runs.
        sharded: whether each process holds only a shard of the network (FSDP2).
        copies: of a sharded network; its gradients are averaged over them (HSDP).
        keeps_gathered: whether blocks stay gathered from the forward to the backward pass, which then needs no second
            gather (accelerate's `fsdp_reshard_after_forward: false`).
        group: a gloo group for decisions, which neither wait for the GPU nor run into NCCL's timeout of ten minutes.
        saving: another one, for the threads that write checkpoints.
        zero: DeepSpeed's zero_optimization, if that shards the optimizer.
    """

    rank: int
    size: int
    device: torch.device
    sharded: bool = False
    copies: int = 1
    keeps_gathered: bool = False
    group: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None
    zero: dict[str, Any] | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run's folder."""
        return self.rank == 0

    def total(self, *mine: float) -> list[float]:
        """The sums over all processes."""
        if self.size == 1:
            return list(mine)
        sums = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        found: list[float] = sums.tolist()
        return found

    def any(self, *mine: bool) -> list[bool]:
        """Whether a flag is set in any process; the same answers in all."""
        return [count > 0 for count in self.total(*mine)]

    def gather(self, mine: _Found, group: dist.ProcessGroup | None = None) -> list[_Found]:
        """The objects of all processes in the order of their ranks, in every process. Small objects only."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=group or self.group)
        return found

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.total(0)

    def shares(self) -> Shares | None:
        """What this process has of a sharded network while a part is built; None of one that is not."""
        count = self.size // self.copies
        return Shares(self.rank % count, count) if self.sharded else None

    def alone(self) -> World:
        """The same process as a world of its own, on the CPU, for work without the others."""
        return World(0, 1, torch.device("cpu"))


def one_process() -> World:
    """A world of this process alone, on the GPU, or on the CPU if there is none."""
    return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def open_world() -> Iterator[World]:
    """Join the other processes that the launcher started, if there are any.

    Raises:
        InputError: the launcher's configuration asks for other copies and shares than processes, or for more of
            DeepSpeed than ZeRO-1 and 2.
    """
    zero = _zero() if _asked("DEEPSPEED") else None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield one_process()
        return
    from accelerate import PartialState  # an import of a second that a single process does not need

    sharded = _asked("FSDP")  # refused before the processes meet: one that leaves would break the others' connections
    copies = _copies(int(os.environ["WORLD_SIZE"])) if sharded and _asked("PARALLELISM_CONFIG") else 1
    state = PartialState(cpu=not torch.cuda.is_available())
    group, saving = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
    keeps = sharded and os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false"
    yield World(state.process_index, state.num_processes, state.device, sharded, copies, keeps, group, saving, zero)
    dist.destroy_process_group()


def _asked(what: str) -> bool:
    """Whether accelerate's launcher was configured to use something."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def _copies(processes: int) -> int:
    """How many copies of a network that is shared out accelerate's parallelism_config asks for."""
    sizes = {name: int(os.environ.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1")) for name in _PARALLEL}
    copies, shares = sizes["DP_REPLICATE"], sizes["DP_SHARD"]
    if copies * shares != processes or any(sizes[name] != 1 for name in ("TP", "CP", "SP")):
        raise InputError(
            f"parallelism_config has dp_replicate_size {copies} and dp_shard_size {shares} for {processes} processes: "
            "their product must be the number of processes, and the other sizes 1."
        )
    return copies


def _zero() -> dict[str, Any]:
    """ZeRO's settings in accelerate's deepspeed_config, and the file that it may name."""
    found: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file is not None:
        try:
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
            found |= settings.pop("zero_optimization", {})
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise InputError(f"deepspeed_config_file {file} cannot be read as DeepSpeed's JSON: {error}.") from None
        _refuse(f"{file} sets", [key for key, value in settings.items() if value != "auto"])
    devices = (os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in ("OPTIMIZER", "PARAM"))
    _refuse("deepspeed_config sets", [f"offload to {device}" for device in devices if device != "none"])
    _refuse(f"{file}, zero_optimization, sets", [key for key in found if key not in _ZERO])
    if found["stage"] not in (1, 2):
        raise InputError(
            f"deepspeed_config has ZeRO stage {found['stage']}; 1 and 2 are supported. To shard the weights too, "
            "use FSDP2: training/launch/fsdp2.yaml."
        )
    return found


def _refuse(where: str, keys: list[str]) -> None:
    if keys:
        raise InputError(
            f"{where} {', '.join(keys)}: of DeepSpeed's settings only {', '.join(_ZERO)} of zero_optimization count; "
            "optimizer, clipping, accumulation and precision are settings of the run."
        )


def shard(modules: dict[str, nn.Module], world: World, shares: Shares | None = None, *, bf16: bool) -> None:
    """Shard the float32 parameters over the processes; they are gathered block by block as they are used (FSDP2).

    Modules on the meta device are filled with what `shares` has kept of them; others are cut up.

    Blocks are gathered in bf16 where the run computes in bf16, and their gradients averaged in float32; what lies
    outside the blocks, whose layers compute in float32, is gathered as it is. Consecutive ranks share a copy: with a
    `dp_shard_size` of a node's size, those of one node.
    """
    # Forward inputs are not cast: the residual stream, modulations and rotary tables are float32.
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = low if bf16 else MixedPrecisionPolicy(cast_forward_inputs=False)
    shape = (world.size,) if world.copies == 1 else (world.copies, world.size // world.copies)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("copies", "shares")[-len(shape) :])
    kept = {} if shares is None else shares.named(modules)
    for module in modules.values():
        for block in [inner for inner in module.modules() if isinstance(inner, TransformerBlock)]:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not world.keeps_gathered)
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        if isinstance(module, ContextAnyoneTransformer):
            register_fsdp_forward_method(module, "encode_references")  # sampling calls it beside `forward`
    fill(modules, kept, world.device)
    for module in modules.values():
        module.to(world.device)


LossFunction = Callable[[Any, int, torch.Generator], tuple[Tensor, Metrics]]


class LossOfPart(nn.Module):
    """A part's loss as the forward pass of a module that holds its networks, which is what DDP wraps."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(part.modules())
        self._part = part

    def forward(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """`part.loss`."""
        return self._part.loss(batch, step, generator)


def joint_loss(part: Part, world: World) -> LossFunction:
    """The part's loss, whose gradients are averaged over the processes in each backward pass.

    Averaging does not wait for the last batch of a step that accumulates, because that batch may have no backward pass:
    its loss is not finite, or no trained parameter is used.

    A process that drops its references has no gradients for parameters that others use: they count as zeros
    (`find_unused_parameters`).
    """
    if world.size == 1 or world.sharded:
        return part.loss
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(LossOfPart(part), device_ids=devices, find_unused_parameters=True)


def reshard(modules: dict[str, nn.Module]) -> None:
    """Free what a forward pass without a backward pass, which would have done it, has left gathered.

    FSDP2 keeps the outermost parameters gathered until then, and the blocks' too where `World.keeps_gathered`; what is
    gathered is not gathered anew when its shards change.
    """
    for module in modules.values():
        for inner in module.modules():
            if isinstance(inner, FSDPModule):
                inner.reshard()  # of its own parameters alone


@contextmanager
def evaluating(modules: dict[str, nn.Module]) -> Iterator[None]:
    """Modules in eval mode. What is gathered within the block was not gathered before it, and is not after it."""
    modes = {inner: inner.training for module in modules.values() for inner in module.modules()}
    reshard(modules)
    for module in modules.values():
        module.eval()
    try:
        yield
    finally:
        reshard(modules)
        for inner, mode in modes.items():
            inner.training = mode


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard; all processes must call it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(shard: DTensor) -> range | None:
    """The rows of the whole tensor that this process's shard is; None without any, or if another copy writes them."""
    mesh, last = shard.device_mesh, shard.device_mesh.ndim - 1
    if any(mesh.get_local_rank(dimension) != 0 for dimension in range(last)):
        return None
    rows = _rows(shard)
    return rows if len(rows) else None


def _rows(shard: DTensor) -> range:
    mesh, last = shard.device_mesh, shard.device_mesh.ndim - 1
    return Shares(mesh.get_local_rank(last), mesh.size(last)).rows(shard.shape[0])


def stored_like(stored: Mapping[str, Tensor], name: str, model: Tensor) -> Tensor:
    """`like(stored[name], model)`, which of a checkpoint reads no more than this process's rows."""
    if not (isinstance(model, DTensor) and isinstance(stored, TensorFiles) and stored.shape(name) == model.shape):
        return like(stored[name], model)
    rows = _rows(model)
    local = stored.rows(name, rows.start, rows.stop).to(model.device)
    shape, stride = model.shape, model.stride()
    return DTensor.from_local(local, model.device_mesh, model.placements, run_check=False, shape=shape, stride=stride)


def copy_stored(target: Mapping[str, Tensor], source: TensorFiles, what: str) -> None:
    """Copy a checkpoint's tensors into tensors of the same names; of shards no more than their rows are read.

    Raises:
        CheckpointError: names or shapes differ; `what` is in the message.
    """
    wrong = sorted(target.keys() ^ source.keys())
    wrong += sorted(n for n in target.keys() & source.keys() if target[n].shape != source.shape(n))
    if wrong:
        raise CheckpointError(f"{what}: {len(wrong)} tensors do not fit this part, such as {wrong[0]}.")
    for name, tensor in target.items():
        tensor.copy_(stored_like(source, name, tensor))


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor on the device of a model tensor, sharded as that is.

    A tensor of the same shape also gets the same memory format, which fused optimizers require. The result is a copy:
    the tensor may be a mapped file, which stays open as long as the tensor exists.
    """
    tensor = tensor.to(model.device)
    if tensor.shape != model.shape:
        return tensor.clone()
    if isinstance(model, DTensor):
        return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
    return torch.empty_like(model, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
