"""The trainer's optimizer on shares of the parameters.

Clipping, skipping and stepping stay the trainer's: each piece of a parameter in this process's share is a flat float32
parameter of its own, a view of DeepSpeed's share, which the trainer's optimizer steps. So the optimizer's state is by
parameter, and a checkpoint is the one that every other way of sharing writes and reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contextanyone_core.errors import InputError
from training.distributed import World
from training.parts.base import Part
from training.zero.engine import Engine
from training.zero.pieces import Piece, cut

_WHOLE = "step"  # the one number in the optimizer's state of a parameter; the rest are tensors of its shape


class ZeroShares:
    """The pieces of this process, with their gradients and weights exchanged by DeepSpeed.

    Attributes:
        loss: the part's loss, which opens its own autocast.
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
        self._world, self._trained = world, dict(trained)
        names = {id(parameter): name for name, parameter in trained.items()}
        groups = [{names[id(p)]: p.numel() for p in group["params"]} for group in optimizer.param_groups]
        self._engine = Engine(part, optimizer, world, bf16=bf16)
        self.loss = self._engine.loss
        self._cut: dict[str, list[Piece]] = {name: [] for name in trained}  # of every process
        for piece in cut(groups, self._engine.share_sizes()):
            self._cut[piece.name].append(piece)
        everywhere = [piece for pieces in self._cut.values() for piece in pieces]
        self._own = {piece.name: piece for piece in everywhere if piece.rank == world.rank}
        self.pieces = {
            name: nn.Parameter(self._engine.weights(piece.group)[piece.in_share]) for name, piece in self._own.items()
        }
        for group, sizes in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [self.pieces[name] for name in sizes if name in self.pieces]
        self._used: set[str] = set()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """The backward pass of a batch; after the last one of a step the pieces have the averaged gradients.

        Raises:
            InputError: not all processes use the same parameters. ZeRO averages in the order of the backward pass.
        """
        leaves = _leaves(loss)
        used = {name for name, parameter in self._trained.items() if id(parameter) in leaves}
        self._refuse_different_use(used)
        self._used |= used
        if not used:  # DeepSpeed ends an accumulation in a backward pass only
            loss = loss + 0.0 * min((p for p in self._trained.values() if p.requires_grad), key=Tensor.numel).sum()
        self._engine.backward(loss, last=last)
        if last:
            gradients = {group: self._engine.gradients(group) for group in {p.group for p in self._own.values()}}
            for name, piece in self._own.items():
                self.pieces[name].grad = gradients[piece.group][piece.in_share] if name in self._used else None
            self._forget_gradients()

    def _refuse_different_use(self, used: set[str]) -> None:
        counts = self._world.total(*(name in used for name in self._trained))
        differing = [name for name, count in zip(self._trained, counts, strict=True) if 0 < count < self._world.size]
        if differing:
            raise InputError(
                f"Not all processes use the same parameters in this step, such as {differing[0]}: DeepSpeed cannot "
                "average their gradients; use training/launch/ddp.yaml."
            )

    def _forget_gradients(self) -> None:
        self._engine.forget_gradients()
        self._used = set()

    def end_step(self, *, changed: bool) -> None:
        """Give every process the weights that the pieces have now; forget gradients of a step that was given up."""
        self._forget_gradients()
        if changed:
            self._engine.gather_weights()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the network's weights into the pieces."""
        for name, piece in self._own.items():
            self.pieces[name].copy_(self._trained[name].flatten()[piece.in_parameter])

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
            joined = torch.tensor(found) if key == _WHOLE else self._join(optimizer, name, key, found)
            if joined is not None and self._world.first:
                whole[f"{name}/{key}"] = joined.cpu()
        return whole

    def _join(self, optimizer: torch.optim.Optimizer, name: str, key: str, dtype: torch.dtype) -> Tensor | None:
        """One tensor of a parameter's state, sent piece by piece to the first process, which alone returns it."""
        own = optimizer.state[self.pieces[name]][key] if name in self.pieces else None
        if not self._world.first:
            if own is not None:
                dist.send(own, dst=0)
            return None
        parameter = self._trained[name]
        whole = torch.empty(parameter.numel(), dtype=dtype, device=parameter.device)
        for piece in self._cut[name]:
            place = whole[piece.in_parameter]
            if own is not None and piece.rank == self._world.rank:
                place.copy_(own)
            else:
                dist.recv(place, src=piece.rank)
        return whole.view(parameter.shape)

    def own_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a whole state that belongs to this process's pieces, in their shapes, or to no parameter."""
        found = {}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if name not in self._trained or (name in self._own and key == _WHOLE):
                found[full_name] = tensor
            elif name in self._own:
                found[full_name] = tensor.flatten()[self._own[name].in_parameter].clone()
        return found


def _leaves(loss: Tensor) -> set[int]:
    """The ids of the tensors, parameters among them, at the ends of a loss's autograd graph."""
    nodes = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = set(nodes)
    for node in nodes:  # which grows as it is walked
        following = {function for function, _ in node.next_functions if function is not None} - seen
        seen |= following
        nodes += following
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}
