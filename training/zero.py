"""DeepSpeed's ZeRO-1 and ZeRO-2: each process keeps a share of the optimizer, with ZeRO-2 of the gradients too.

DeepSpeed lays the parameters of each optimizer group end to end, cuts that into one share for each process, averages
the gradients into the shares and gathers the weights. Clipping, skipping and stepping stay the trainer's: what of a
parameter lies in this process's share is a *piece*, a flat float32 parameter that the trainer's own optimizer steps. So
the optimizer's state is by parameter, and a checkpoint the one that every other way of sharing writes and reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, autocast, nn

from contextanyone_core.errors import InputError, MissingDependencyError
from training.distributed import LossOfPart, World
from training.parts.base import Metrics, Part

_BUCKET = 50_000_000  # elements that are averaged at a time: 0.2 GB, where DeepSpeed's own 500 M take 2 GB
_WHOLE = "step"  # of the optimizer's state, what is one number and not a tensor like the parameter


class ZeroShares:
    """The pieces of this process, and what DeepSpeed does for them.

    Attributes:
        loss: the part's loss, which opens its own autocast: DeepSpeed ends one that was opened around it.
        pieces: by the name of their parameter. The optimizer's groups hold these in the parameters' place.
    """

    def __init__(
        self,
        part: Part,
        optimizer: torch.optim.Optimizer,
        trained: Mapping[str, nn.Parameter],
        world: World,
        *,
        bf16: bool,
    ) -> None:
        try:
            import deepspeed  # five seconds that other trainings do not need
        except ImportError:
            raise MissingDependencyError('DeepSpeed is not installed: pip install -e ".[deepspeed]".') from None
        self._world = world
        self._trained = dict(trained)
        names = {id(parameter): name for name, parameter in trained.items()}
        groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=_Loss(part, bf16=bf16), optimizer=optimizer, config=_configuration(world)
        )
        self.loss = self._engine
        self.pieces: dict[str, nn.Parameter] = {}
        self._spans: dict[str, slice] = {}  # of a piece in its parameter
        self._places: list[dict[str, slice]] = []  # of the pieces in each group's share
        for index, group in enumerate(groups):
            self._places.append(self._cut(group, int(self._zero.partition_size[index])))
            share = self._zero.single_partition_of_fp32_groups[index].detach()
            self.pieces |= {name: nn.Parameter(share[place]) for name, place in self._places[index].items()}
            optimizer.param_groups[index]["params"] = [self.pieces[name] for name in self._places[index]]
        self._used: set[str] = set()

    def _cut(self, group: list[str], size: int) -> dict[str, slice]:
        """Where in this process's share, of a size, the parameters of a group lie that do at all."""
        first, places, offset = self._world.rank * size, {}, 0
        for name in group:
            begin, end = max(offset, first), min(offset + self._trained[name].numel(), first + size)
            if begin < end:
                places[name] = slice(begin - first, end - first)
                self._spans[name] = slice(begin - offset, end - offset)
            offset += self._trained[name].numel()
        return places

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """The backward pass of a batch; after the last one of a step the pieces have the averaged gradients.

        Raises:
            InputError: not all processes use the same parameters. ZeRO averages in the order of the backward pass.
        """
        used = _used(loss, self._trained)
        counts = self._world.total(*(name in used for name in self._trained))
        differing = [name for name, count in zip(self._trained, counts, strict=True) if 0 < count < self._world.size]
        if differing:
            raise InputError(
                f"Not all processes use the same parameters in this step, such as {differing[0]}: DeepSpeed cannot "
                "average their gradients; use training/launch/ddp.yaml."
            )
        self._used |= used
        if not used:  # DeepSpeed ends an accumulation in a backward pass only
            loss = loss + 0.0 * min((p for p in self._trained.values() if p.requires_grad), key=Tensor.numel).sum()
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)
        if last:
            for index, places in enumerate(self._places):
                share = torch.cat([gradient.flatten() for gradient in self._zero.averaged_gradients[index]])
                for name, place in places.items():
                    self.pieces[name].grad = share[place] if name in self._used else None
            self._clear()

    def _clear(self) -> None:
        self._zero.zero_grad()
        for index in range(len(self._places)):
            self._zero.averaged_gradients[index] = self._zero.all_grad_tensors[index] = None
        self._used = set()

    def end_step(self, *, changed: bool) -> None:
        """Give every process the weights that the pieces have now; forget gradients of a step that was given up."""
        self._clear()
        if changed:
            self._zero.update_lp_params()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the network's weights over into the pieces."""
        for name, piece in self.pieces.items():
            piece.copy_(self._trained[name].flatten()[self._spans[name]])

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The optimizer's state as `optimizer_tensors` gives it, of all pieces; all must call, the first has it."""
        mine = {
            (name, key): value.item() if key == _WHOLE else value.dtype
            for name, piece in self.pieces.items()
            for key, value in optimizer.state.get(piece, {}).items()
        }
        known = {place: found for theirs in self._world.gather(mine) for place, found in theirs.items()}
        whole = {}
        for (name, key), found in sorted(known.items()):
            joined = torch.tensor(found) if key == _WHOLE else self._joined(optimizer, name, key, found)
            if self._world.first:
                whole[f"{name}/{key}"] = joined.cpu()
        return whole

    def _joined(self, optimizer: torch.optim.Optimizer, name: str, key: str, dtype: torch.dtype) -> Tensor:
        parameter = self._trained[name]
        whole = torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
        if name in self.pieces:
            whole[self._spans[name]] = optimizer.state[self.pieces[name]][key]
        dist.reduce(whole.view(torch.uint8), 0)  # a sum of bytes, of which only one process's are not zero: exact
        return whole.view(parameter.shape)

    def own_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a whole state belongs to this process's pieces, with their shapes, and what to no parameter."""
        found = {}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if name not in self._trained or (name in self.pieces and key == _WHOLE):
                found[full_name] = tensor
            elif name in self.pieces:
                found[full_name] = tensor.flatten()[self._spans[name]].clone()
        return found


class _Loss(LossOfPart):
    """A part's loss under its own autocast."""

    def __init__(self, part: Part, *, bf16: bool) -> None:
        super().__init__(part)
        self._bf16 = bf16

    def forward(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """`part.loss`."""
        device = next(self.parameters()).device.type
        with autocast(device, torch.bfloat16, enabled=self._bf16):
            return super().forward(batch, step, generator)


def _configuration(world: World) -> dict[str, Any]:
    """What DeepSpeed is told: nothing that the run's own configuration says."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"reduce_bucket_size": _BUCKET, **(world.zero or {})},
    }


def _used(loss: Tensor, trained: Mapping[str, nn.Parameter]) -> set[str]:
    """The names of the parameters that a loss depends on."""
    names = {id(parameter): name for name, parameter in trained.items()}
    found, seen, waiting = set(), {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if id(variable) in names:
            found.add(names[id(variable)])
        for following, _ in node.next_functions if node is not None else ():
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found
