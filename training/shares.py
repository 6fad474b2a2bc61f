"""A network that no process holds whole (FSDP2): built on the meta device, of each tensor only the own rows kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Shares:
    """The rows of one process, of each tensor of a network that is shared out, until the network is sharded.

    A part builds its network on the meta device, and keeps the values of every parameter and buffer here, one after the
    other; `named` gives them to the sharded network.

    Args:
        rank, count: this process among those that share a copy of the network.
    """

    def __init__(self, rank: int, count: int) -> None:
        self._rank, self._count = rank, count
        self._kept: dict[Tensor, Tensor] = {}  # by the parameter or buffer on the meta device
        self.used = False

    def rows(self, size: int) -> range:
        """This process's rows of a tensor of so many: FSDP2 cuts the first axis as torch.chunk does."""
        count = -(-size // self._count)
        start = min(count * self._rank, size)
        return range(start, min(start + count, size))

    def keep(self, place: Tensor, whole: Tensor) -> None:
        """Keep a copy of this process's rows of a parameter's values, or of a buffer all; the last values count."""
        if isinstance(place, nn.Parameter):
            rows = self.rows(whole.shape[0])
            whole = whole[rows.start : rows.stop]
        self.keep_rows(place, whole.detach().to("cpu", place.dtype, copy=True))

    def keep_rows(self, place: Tensor, rows: Tensor) -> None:
        """Keep what `keep` would: the very tensor."""
        self._kept[place] = rows
        self.used = True

    def take(self, module: nn.Module) -> None:
        """Keep what a module on the CPU holds, and put it on the meta device."""
        for inner in module.modules():
            for name, parameter in inner.named_parameters(recurse=False):
                empty = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
                inner.register_parameter(name, empty)
                self.keep(empty, parameter)

    def named(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """What is kept, by module and name, and let go of it. To be called before the modules are sharded."""
        places = {place: name for name, place in named_places(modules).items()}
        found = {places[place]: rows for place, rows in self._kept.items()}
        self._kept = {}
        return found


def named_places(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by module and name."""
    return {
        f"{prefix}.{name}": place
        for prefix, module in modules.items()
        for name, place in (*module.named_parameters(), *module.named_buffers())
    }


@torch.no_grad()
def fill(modules: Mapping[str, nn.Module], kept: dict[str, Tensor], device: torch.device) -> None:
    """Give modules that were sharded on the meta device their memory and their values, which are let go one by one.

    Args:
        kept: of `Shares.named`. device: of the shards.
    """
    for prefix, module in modules.items():
        if not any(place.is_meta for place in named_places({prefix: module}).values()):
            continue
        module.to_empty(device=device)
        for name, place in named_places({prefix: module}).items():
            own = place.to_local() if isinstance(place, DTensor) else place
            own.copy_(kept.pop(name))
