"""A part whose two processes can equal one: each learns from its rows of the batch of all, without other draws."""

import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import linear_part
import torch
from torch import Tensor, nn
from torch.nn import Linear

from training.parts import PARTS, PartEntry
from training.parts.base import Metrics, PartContext
from training.randomness import torch_generator


class Settings(linear_part.Settings):
    name: Literal["shared"] = "shared"  # type: ignore[assignment]


class SharedPart(linear_part.LinearPart):
    """y = sum of x; at `nan_steps` the last process's loss is not finite."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        super().__init__(settings, context)
        self.context = context
        self.net = nn.Sequential(Linear(settings.width, settings.width), nn.Tanh(), Linear(settings.width, 1))

    def batch(self, step: int) -> dict[str, Any]:
        generator = torch_generator(self.seed, step, "x")
        x = torch.randn(self.settings.batch_size, self.settings.width, generator=generator)
        mine = slice(self.context.rank, None, self.context.world)
        return {"x": x[mine], "ids": [f"row {number}" for number in range(len(x))][mine]}

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        time.sleep(self.settings.seconds_a_step)
        error = (self.net(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().squeeze(1)
        if step in self.settings.nan_steps and self.context.rank == self.context.world - 1:
            error = error * torch.nan
        return error, {"mse": error.detach()}

    def validation_batches(self) -> Iterator[Any]:
        for step in range(1000, 1003):
            yield self.batch(step)

    def validation_loss(self, batch: Any, sigma: float, generator: torch.Generator) -> Metrics:
        assert not self.net.training
        torch.randn(3)
        noise = sigma * torch.randn(batch["x"].shape, generator=generator)
        return {"video": self.loss({"x": batch["x"] + noise}, -1, generator)[0]}


PARTS["shared"] = PartEntry(__name__, "SharedPart")

if __name__ == "__main__":
    from training.train import main

    sys.exit(main())
