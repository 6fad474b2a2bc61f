"""DeepSpeed's engine as the trainer uses it. All use of DeepSpeed's internal attributes is in this file.

DeepSpeed averages the gradients into each process's share and gathers the weights. Its optimizer step, clipping, loss
scaling and checkpoints are not used. Tested with DeepSpeed 0.19.8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, autocast

from contextanyone_core.errors import MissingDependencyError
from training.distributed import LossOfPart, World
from training.parts.base import Metrics, Part

_BUCKET = 50_000_000  # elements that are averaged at a time: 0.2 GB, where DeepSpeed's own 500 M take 2 GB


class Engine:
    """A part's loss under DeepSpeed, and this process's flat float32 share of each optimizer group.

    Attributes:
        loss: the part's loss, which opens its own autocast: DeepSpeed ends one that was opened around it.
    """

    def __init__(self, part: Part, optimizer: torch.optim.Optimizer, world: World, *, bf16: bool) -> None:
        try:
            import deepspeed  # five seconds that other trainings do not need
        except ImportError:
            raise MissingDependencyError('DeepSpeed is not installed: pip install -e ".[deepspeed]".') from None
        self._groups = range(len(optimizer.param_groups))
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=_Loss(part, bf16=bf16), optimizer=optimizer, config=_configuration(world)
        )
        self.loss = self._engine

    def share_sizes(self) -> list[int]:
        """Elements of a share of each group; all processes have as many."""
        return [int(self._zero.partition_size[group]) for group in self._groups]

    def weights(self, group: int) -> Tensor:
        """This process's share of a group's weights: `gather_weights` copies what is written there to all processes."""
        share: Tensor = self._zero.single_partition_of_fp32_groups[group].detach()
        return share

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """The backward pass of a batch, and with the last one of a step the averaging over the processes."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def gradients(self, group: int) -> Tensor:
        """This process's share of a group's averaged gradients, after the last backward pass of a step."""
        return torch.cat([gradient.flatten() for gradient in self._zero.averaged_gradients[group]])

    def forget_gradients(self) -> None:
        """Drop the gradients of all batches since the last step."""
        self._zero.zero_grad()
        for group in self._groups:
            self._zero.averaged_gradients[group] = self._zero.all_grad_tensors[group] = None

    def gather_weights(self) -> None:
        """Give every process's network the weights of all shares."""
        self._zero.update_lp_params()


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
    """DeepSpeed's configuration, without anything that the run's own configuration sets."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"reduce_bucket_size": _BUCKET, **(world.zero or {})},
    }
