"""A part of one small network, for the tests of the loop: real tensors, real files, milliseconds."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import Linear

from training.parts import PARTS, PartEntry
from training.parts.base import Metrics, ParameterGroup, PartContext, PartSettings, default_groups
from training.randomness import torch_generator


class Settings(PartSettings):
    name: Literal["linear"] = "linear"
    width: int = 8
    batch_size: int = 4
    nan_steps: tuple[int, ...] = ()
    nan_gradient_steps: tuple[int, ...] = ()
    seconds_a_step: float = 0.0


class LinearPart:
    """Learns y = x w with dropout, so that every source of randomness is in play."""

    def __init__(self, settings: Settings, context: PartContext) -> None:
        self.settings = settings
        self.seed = context.seed
        width = settings.width
        self.net = nn.Sequential(Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.1), Linear(width, 1))
        if context.init_from is not None:
            self.net.load_state_dict(load_file(context.init_from))

    def modules(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def parameter_groups(self) -> list[ParameterGroup]:
        return default_groups(self.modules())

    def batch(self, step: int) -> dict[str, Tensor]:
        x = torch.randn(self.settings.batch_size, self.settings.width, generator=torch_generator(self.seed, step, "x"))
        return {"x": x, "y": x.sum(1, keepdim=True) + 0.01 * torch.randn(x.shape[0], 1)}

    def loss(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        time.sleep(self.settings.seconds_a_step)
        noise = 0.1 * torch.randn(batch["x"].shape, generator=generator)
        error = (self.net(batch["x"] + noise) - batch["y"]).float().square().squeeze(1)
        if step in self.settings.nan_steps:
            error = error * torch.nan
        if step in self.settings.nan_gradient_steps:
            error = error + (self.net[3].weight.abs().sum() * 0).sqrt()
        return error, {"mse": error, "pid": float(os.getpid())}

    def sample(self, step: int, folder: Path) -> None:
        assert not self.net.training
        torch.randn(5)
        Image.new("RGB", (4, 4), (step % 256, 0, 0)).save(folder / "sample.png")

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        tensors = {name: tensor.half().contiguous() for name, tensor in self.net.state_dict().items()}
        save_file(tensors, folder / "linear.safetensors", {"steps": str(record["steps"])})


PARTS["linear"] = PartEntry(__name__, "LinearPart")

if __name__ == "__main__":
    import sys

    from training.train import main

    sys.exit(main())
